#include "deltas.hpp"

#include <algorithm>

namespace {

std::size_t elements(const Tensor& tensor) { return tensor.elements(); }

void check_coefficients(const std::vector<Tensor>& old, const Tensor& delta, const Fit& fit) {
    bool alike = old.size() == fit.basis.size();
    for (const Tensor& held : old)
        alike = alike && held.dtype == delta.dtype && held.shape == delta.shape;
    if (!alike)
        throw Refusal("A fit of " + std::to_string(fit.basis.size()) + " coefficients of " +
                          info(delta.dtype).name + " " + text(delta.shape) + " finds " +
                          std::to_string(old.size()) + ", or others",
                      "Export the bundle again");
}

// An error of forecast, delta - basis . coefficients, then coefficients + gains * error: rounded
// after every operation, as torch does.
template <class T>
std::vector<Tensor> updated(const std::vector<Tensor>& old, const Tensor& delta, const Fit& fit) {
    const T* given = static_cast<const T*>(delta.data.get());
    std::vector<T> error(given, given + elements(delta));
    for (std::size_t k = 0; k < fit.basis.size(); ++k) {
        const T* held = static_cast<const T*>(old[k].data.get());
        const T value = static_cast<T>(fit.basis[k]);
        for (std::size_t i = 0; i < error.size(); ++i) error[i] = error[i] - value * held[i];
    }
    std::vector<Tensor> made;
    for (std::size_t k = 0; k < fit.gains.size(); ++k) {
        const T* held = k < old.size() ? static_cast<const T*>(old[k].data.get()) : nullptr;
        const T gain = static_cast<T>(fit.gains[k]);
        std::shared_ptr<T> memory(new T[error.size()], std::default_delete<T[]>());
        for (std::size_t i = 0; i < error.size(); ++i)
            memory.get()[i] = (held ? held[i] : T(0)) + gain * error[i];
        made.push_back({delta.dtype, delta.shape, memory});
    }
    return made;
}

std::vector<Tensor> updated(const std::vector<Tensor>& old, const Tensor& delta, const Fit& fit) {
    check_coefficients(old, delta, fit);
    if (fit.basis.empty()) return {delta};  // the first one is what it is
    if (delta.dtype == Dtype::f32) return updated<float>(old, delta, fit);
    if (delta.dtype == Dtype::f64) return updated<double>(old, delta, fit);
    check_fitted(info(delta.dtype).name);
    return {};
}

}  // namespace

void check_fitted(const std::string& dtype) {
    if (dtype != info(Dtype::f32).name && dtype != info(Dtype::f64).name)
        throw Refusal("The bundle fits deltas of " + dtype,
                      "Export the bundle again: deltas of half precision are float32 now");
}

Deltas::Deltas(const Bundle& bundle, const std::vector<Row>& rows) : bundle_(bundle), rows_(rows) {
    for (std::size_t step = 0; step < rows.size(); ++step)
        for (const std::string& name : bundle.variants.at(rows[step].variant).reads)
            for (std::size_t which : rows[step].reads) last_[name][which] = step;
}

const Tensor& Deltas::delta(const Held& held, const Row& row, std::size_t age) const {
    // Where there is no older one the newest stands in, with a weight of 0.
    return held.at(row.reads[age < row.reads.size() && held.count(row.reads[age]) ? age : 0]);
}

void Deltas::give(std::size_t step, std::map<std::string, Tensor>& values) const {
    const Row& row = rows_[step];
    for (const std::string& name : bundle_.variants.at(row.variant).reads)
        for (std::size_t age = 0; age < bundle_.buffers(); ++age)
            values[bundle_.buffer(name, age)] = delta(held_.at(name), row, age);
    for (std::size_t stream = 0; stream < row.weights.size(); ++stream)
        values["weights_" + std::to_string(stream)] = vector_of(row.weights[stream]);
    if (row.trend) values["trend"] = scalar(*row.trend);
}

void Deltas::take(std::size_t step, const std::map<std::string, Tensor>& values) {
    const Row& row = rows_[step];
    for (const std::string& name : bundle_.variants.at(row.variant).deltas) {
        Held& held = held_[name];
        if (!row.fit) {
            held[step] = values.at(name);
            continue;
        }
        std::vector<Tensor> old;
        for (const auto& [which, coefficient] : held) old.push_back(coefficient);
        const std::vector<Tensor> fitted = updated(old, values.at(name), *row.fit);
        for (std::size_t which = 0; which < fitted.size(); ++which) held[which] = fitted[which];
    }
    for (auto& [name, held] : held_)
        for (auto entry = held.begin(); entry != held.end();) {
            const auto& last = last_[name];
            const auto found = last.find(entry->first);
            const bool read = found != last.end() && found->second > step;
            entry = read ? std::next(entry) : held.erase(entry);
        }
}

std::size_t Deltas::bytes() const {
    std::size_t total = 0;
    for (const auto& [name, held] : held_)
        for (const auto& [which, delta] : held) total += delta.bytes();
    return total;
}
