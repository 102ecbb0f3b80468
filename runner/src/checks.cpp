#include "checks.hpp"

#include <algorithm>
#include <set>

#include "deltas.hpp"

namespace {

void check_call(const Bundle& bundle, const Call& call, std::set<std::string>& known) {
    const auto found = bundle.segments.find(call.segment);
    if (found == bundle.segments.end())
        throw inconsistent("A call names segment " + call.segment + ", which the plan lacks");
    if (call.inputs.size() != found->second.inputs.size() ||
        call.outputs.size() != found->second.outputs.size())
        throw inconsistent("A call of segment " + call.segment + " has other numbers of values");
    for (const std::string& name : call.inputs)
        if (!known.count(name))
            throw inconsistent("Segment " + call.segment + " reads " + name +
                               ", which is not there");
    known.insert(call.outputs.begin(), call.outputs.end());
}

void check_values(const Variant& variant, const std::set<std::string>& known) {
    for (const auto* names : {&variant.results, &variant.deltas})
        for (const std::string& name : *names)
            if (!known.count(name))
                throw inconsistent("Variant " + variant.name + " gives " + name +
                                   " without a call");
    if (variant.results.empty()) throw inconsistent("Variant " + variant.name + " gives no result");
}

// Whether every delta that a cached row reads was given by the refresh that it names.
void check_reads(const Bundle& bundle, std::size_t step,
                 const std::map<std::string, std::set<std::size_t>>& made) {
    const Row& row = bundle.table[step];
    for (const std::string& delta : bundle.variants.at(row.variant).reads)
        for (std::size_t refresh : row.reads)
            if (!made.count(delta) || !made.at(delta).count(refresh))
                throw inconsistent("Row " + std::to_string(step) + " reads " + delta + " of step " +
                                   std::to_string(refresh) + ", which is not there");
    for (const std::vector<float>& weights : row.weights)
        if (weights.size() != bundle.taken)
            throw inconsistent("Row " + std::to_string(step) + " has " +
                               std::to_string(weights.size()) + " weights of a stream, not " +
                               std::to_string(bundle.taken));
}

// Whether a refresh brings the coefficients of every delta it gives from as many as there are.
void check_fit(const Bundle& bundle, std::size_t step, std::map<std::string, std::size_t>& held) {
    const Fit& fit = *bundle.table[step].fit;
    const std::size_t basis = fit.basis.size(), gains = fit.gains.size();
    const std::string fact = "Row " + std::to_string(step) + " makes " + std::to_string(gains) +
                             " coefficients of " + std::to_string(basis);
    if (gains < std::max<std::size_t>(1, basis) || gains > bundle.taken)
        throw inconsistent(fact + ", the plan weighs " + std::to_string(bundle.taken));
    if (basis == 0 && fit.gains != std::vector<double>{1})
        throw inconsistent(fact + ", and the first delta is the first coefficient as it is");
    for (const std::string& delta : bundle.variants.at(bundle.table[step].variant).deltas) {
        if (held[delta] != basis)
            throw inconsistent(fact + ", where " + delta + " has " + std::to_string(held[delta]));
        const auto value = bundle.values.find(delta);
        if (value != bundle.values.end()) check_fitted(value->second.dtype);
        held[delta] = gains;
    }
}

// A bundle fits all of its deltas or none.
void check_fits(const Bundle& bundle, std::size_t step, bool fits) {
    const bool gives = !bundle.variants.at(bundle.table[step].variant).deltas.empty();
    if (bundle.table[step].fit.has_value() != (fits && gives))
        throw inconsistent("Row " + std::to_string(step) +
                           (gives ? " gives deltas without a fit, and others with one"
                                  : " has a fit and gives no delta"));
}

// Whether the weights of a cached row end with those of the last delta that is there.
void check_weights(const Bundle& bundle, std::size_t step, bool fits,
                   std::map<std::string, std::size_t>& held) {
    const Row& row = bundle.table[step];
    std::size_t there = fits ? bundle.taken : row.reads.size();
    for (const std::string& delta : bundle.variants.at(row.variant).reads)
        if (fits) there = std::min(there, held[delta]);
    for (const std::vector<float>& weights : row.weights)
        for (std::size_t age = there; age < weights.size(); ++age)
            if (weights[age] != 0)
                throw inconsistent("Row " + std::to_string(step) + " weighs " +
                                   std::to_string(age + 1) + " deltas, where there are " +
                                   std::to_string(there));
}

// What a cached row knows by name besides the model's inputs.
void add_given(const Bundle& bundle, const Row& row, std::set<std::string>& known) {
    for (const std::string& delta : bundle.variants.at(row.variant).reads)
        for (std::size_t age = 0; age < bundle.buffers() && !row.reads.empty(); ++age)
            known.insert(bundle.buffer(delta, age));
    for (std::size_t stream = 0; stream < row.weights.size(); ++stream)
        known.insert("weights_" + std::to_string(stream));
    if (row.trend) known.insert("trend");
}

}  // namespace

Refusal inconsistent(const std::string& fact) { return Refusal(fact, "Export the bundle again"); }

void check_table(const Bundle& bundle) {
    std::map<std::string, std::set<std::size_t>> made;
    std::map<std::string, std::size_t> coefficients;  // of a fit, by delta
    const bool fits = bundle.fits();
    std::set<std::string> inputs;
    for (const Input& input : bundle.inputs) inputs.insert(input.name);
    for (std::size_t step = 0; step < bundle.table.size(); ++step) {
        const Row& row = bundle.table[step];
        const auto found = bundle.variants.find(row.variant);
        if (found == bundle.variants.end())
            throw inconsistent("The table names variant " + row.variant + ", which the plan lacks");
        check_reads(bundle, step, made);
        check_weights(bundle, step, fits, coefficients);
        check_fits(bundle, step, fits);
        if (row.fit) check_fit(bundle, step, coefficients);
        std::set<std::string> known = inputs;
        add_given(bundle, row, known);
        for (const Call& call : found->second.calls) check_call(bundle, call, known);
        check_values(found->second, known);
        for (const std::string& delta : found->second.deltas) made[delta].insert(step);
    }
}
