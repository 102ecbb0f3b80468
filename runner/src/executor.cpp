#include "executor.hpp"

#include <algorithm>
#include <set>

namespace {

// For each call, the values that nothing after it reads: a deep model would hold every hidden
// state.
std::vector<std::vector<std::string>> last_reads(const Variant& variant) {
    std::set<std::string> needed(variant.results.begin(), variant.results.end());
    needed.insert(variant.deltas.begin(), variant.deltas.end());
    std::vector<std::vector<std::string>> dead(variant.calls.size());
    for (std::size_t i = variant.calls.size(); i-- > 0;) {
        for (const auto* names : {&variant.calls[i].outputs, &variant.calls[i].inputs})
            for (const std::string& name : *names)
                if (needed.insert(name).second) dead[i].push_back(name);
    }
    return dead;
}

}  // namespace

Executor::Executor(const Bundle& bundle, const std::vector<Row>& rows, const Settings& settings,
                   const std::vector<Tensor>& inputs)
    : bundle_(bundle), rows_(rows), deltas_(bundle, rows) {
    bind_sizes(inputs);
    engine_ = make_engine(bundle, settings);
    for (const Row& row : rows)
        for (const Call& call : bundle.variants.at(row.variant).calls)
            if (!segments_.count(call.segment))
                segments_[call.segment] = engine_->load(bundle.segments.at(call.segment));
}

void Executor::bind_sizes(const std::vector<Tensor>& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i)
        bind(bundle_.inputs[i].name, bundle_.inputs[i].shape, inputs[i].shape, sizes_);
    for (std::size_t i = 0; i < inputs.size(); ++i)
        check(bundle_.inputs[i].name, inputs[i], bundle_.inputs[i]);
    for (const auto& [name, range] : bundle_.dimensions) {
        const std::int64_t size = evaluate(name, sizes_);
        const std::int64_t greatest = range.greatest.value_or(size);
        if (size < range.least || size > greatest)
            throw Refusal("Dimension " + name + " is " + std::to_string(size) + ", exported for " +
                              std::to_string(range.least) + " to " + std::to_string(greatest),
                          "Give inputs within that range, or export for a wider one");
    }
}

void Executor::check(const std::string& name, const Tensor& tensor, const Value& value) const {
    const Shape planned = evaluate(value.shape, sizes_);
    if (tensor.shape == planned && tensor.dtype == dtype_named(value.dtype)) return;
    throw Refusal(name + " is " + info(tensor.dtype).name + " " + text(tensor.shape) +
                      ", the bundle has " + value.dtype + " " + text(planned),
                  "Give inputs of the exported form, or export the bundle again");
}

void Executor::run_call(const Call& call, std::map<std::string, Tensor>& values) {
    std::vector<Tensor> inputs;
    for (const std::string& name : call.inputs) inputs.push_back(values.at(name));
    std::vector<Tensor> outputs = segments_.at(call.segment)->run(inputs);
    for (std::size_t i = 0; i < call.outputs.size(); ++i) {
        const auto planned = bundle_.values.find(call.outputs[i]);
        if (planned != bundle_.values.end()) check(planned->first, outputs.at(i), planned->second);
        values[call.outputs[i]] = std::move(outputs.at(i));
    }
}

Tensor Executor::run(std::size_t step, const std::vector<Tensor>& inputs) {
    const Variant& variant = bundle_.variants.at(rows_[step].variant);
    std::map<std::string, Tensor> values;
    deltas_.give(step, values);
    for (std::size_t i = 0; i < inputs.size(); ++i) values[bundle_.inputs[i].name] = inputs[i];
    const auto dead = last_reads(variant);
    for (std::size_t i = 0; i < variant.calls.size(); ++i) {
        run_call(variant.calls[i], values);
        for (const std::string& name : dead[i]) values.erase(name);
    }
    deltas_.take(step, values);
    return values.at(variant.results.front());
}
