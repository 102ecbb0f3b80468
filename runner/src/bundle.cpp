#include "bundle.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr int kSchema = 2, kOlder = 1;
constexpr std::size_t kMost = 4;  // deltas of a stream that are weighed
const std::string kBefore = "_before";  // after the name of a delta: of an earlier refresh

Refusal inconsistent(const std::string& fact) { return Refusal(fact, "Export the bundle again"); }

Value read_value(const json& from) {
    Value value{from.at("dtype"), {}};
    for (const json& size : from.at("shape"))
        value.shape.push_back(size.is_string() ? size.get<std::string>() : size.dump());
    return value;
}

Input read_input(const json& from) { return {read_value(from), from.at("name"), from.at("role")}; }

SegmentPlan read_segment(const json& from) {
    SegmentPlan segment{
        from.at("name"), from.at("file"), from.at("inputs"), from.at("outputs"), {}};
    if (from.contains("weights")) segment.weights = from.at("weights");
    return segment;
}

Variant read_variant(const json& from) {
    Variant variant{from.at("name"), from.at("kind"), {}, {}, from.at("deltas"), {}, {}};
    for (const json& result : from.at("results"))  // else a literal the model returns
        if (result.is_string()) variant.results.push_back(result);
    for (const json& call : from.at("calls"))
        variant.calls.push_back({call.at("segment"), call.at("inputs"), call.at("outputs")});
    for (const auto& [kind, count] : from.at("macs").items())
        if (count.is_number()) variant.macs[kind] = count;
    return variant;
}

Range read_range(const json& from) {
    Range range{from.at(0), std::nullopt};
    if (!from.at(1).is_null()) range.greatest = from.at(1).get<std::int64_t>();
    return range;
}

Row read_row(const json& from, int schema) {
    Row row{from.at("variant")};
    if (schema == kOlder) {
        const bool told = from.contains("trend") && !from["trend"].is_null();
        if (told) row.trend = from["trend"].get<float>();
        return row;
    }
    row.reads = from.at("reads").get<std::vector<std::size_t>>();
    row.weights = from.at("weights").get<std::vector<std::vector<float>>>();
    if (!from.at("fit").is_null())
        row.fit = Fit{from["fit"].at("basis"), from["fit"].at("gains")};
    return row;
}

// Which deltas every variant reads: those that some refresh gives.
void find_reads(Bundle& bundle) {
    std::set<std::string> given;
    for (const auto& [name, variant] : bundle.variants)
        given.insert(variant.deltas.begin(), variant.deltas.end());
    for (auto& [name, variant] : bundle.variants) {
        std::set<std::string> found;
        for (const Call& call : variant.calls)
            for (const std::string& input : call.inputs)
                if (given.count(input.substr(0, input.find(kBefore))))
                    found.insert(input.substr(0, input.find(kBefore)));
        if (variant.kind == "cached") variant.reads.assign(found.begin(), found.end());
    }
}

// Schema 1 does not say which refreshes a cached row reads: the newest that gave its deltas.
void find_refreshes(Bundle& bundle) {
    std::map<std::string, std::vector<std::size_t>> made;  // by delta, newest first
    for (std::size_t step = 0; step < bundle.table.size(); ++step) {
        const auto variant = bundle.variants.find(bundle.table[step].variant);
        if (variant == bundle.variants.end()) continue;  // which a check will tell
        for (const std::string& delta : variant->second.deltas)
            made[delta].insert(made[delta].begin(), step);
        for (const std::string& delta : variant->second.reads) {
            std::vector<std::size_t>& reads = bundle.table[step].reads = made[delta];
            reads.resize(std::min(reads.size(), bundle.buffers()));
        }
    }
}

// Of a fit every row reads the coefficients, whichever refreshes they come from.
void read_coefficients(Bundle& bundle) {
    const auto fits = [](const Row& row) { return row.fit.has_value(); };
    if (!std::any_of(bundle.table.begin(), bundle.table.end(), fits)) return;
    for (Row& row : bundle.table)
        if (!row.reads.empty()) {
            row.reads.resize(bundle.taken);
            for (std::size_t which = 0; which < bundle.taken; ++which) row.reads[which] = which;
        }
}

Bundle read_plan(const json& plan, const fs::path& folder) {
    Bundle bundle;
    bundle.folder = folder;
    bundle.format = plan.at("format");
    bundle.schema = plan.at("schema");
    const bool older = bundle.schema == kOlder;
    bundle.taken = plan.at(older ? "order" : "taken");
    if (bundle.taken > (older ? 1 : kMost))
        throw inconsistent("The plan weighs " + std::to_string(bundle.taken) + " deltas");
    if (older) bundle.taken *= 2;
    for (const auto& [name, ends] : plan.at("dimensions").items())
        bundle.dimensions[name] = read_range(ends);
    for (const json& input : plan.at("inputs")) bundle.inputs.push_back(read_input(input));
    for (const auto& [name, value] : plan.at("values").items())
        bundle.values[name] = read_value(value);
    for (const json& segment : plan.at("segments"))
        bundle.segments[segment.at("name")] = read_segment(segment);
    for (const json& variant : plan.at("variants"))
        bundle.variants[variant.at("name")] = read_variant(variant);
    for (const json& row : plan.at("table"))
        bundle.table.push_back(read_row(row, bundle.schema));
    find_reads(bundle);
    if (older) find_refreshes(bundle);
    return bundle;
}

json parse_plan(const fs::path& path) {
    std::ifstream file(path);
    if (!file) throw Refusal(path.string() + " cannot be read", "Give the folder of a plan bundle");
    const json plan = json::parse(file);
    const json& schema = plan.at("schema");
    if (schema != kSchema && schema != kOlder)
        throw Refusal(path.string() + " has schema " + schema.dump() + ", this runner reads " +
                          std::to_string(kOlder) + " and " + std::to_string(kSchema),
                      "Build the runner of the version that exported it");
    return plan;
}

// A plan names files of its own folder and no others: segments of some formats are native code.
void check_inside(const std::string& name) {
    const fs::path path(name);
    bool inside = path.is_relative();
    for (const fs::path& part : path) inside = inside && part != "..";
    if (!inside)
        throw Refusal("plan.json names " + name + ", which lies outside the bundle",
                      "Get the bundle from whom you trust");
}

void check_files(const json& files, const fs::path& folder) {
    for (const auto& [name, expected] : files.items()) {
        check_inside(name);
        const fs::path path = folder / name;
        std::error_code error;
        const std::uintmax_t bytes = fs::file_size(path, error);
        if (error) throw Refusal(path.string() + " is missing", "Copy the whole bundle again");
        if (bytes != expected.at("bytes"))
            throw Refusal(path.string() + " has " + std::to_string(bytes) +
                              " bytes, the plan says " + expected.at("bytes").dump(),
                          "Copy the whole bundle again");
    }
}

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

void check_fit(const Bundle& bundle, const Row& row, std::size_t& coefficients) {
    const std::size_t basis = row.fit->basis.size(), gains = row.fit->gains.size();
    if (basis != coefficients || gains < std::max<std::size_t>(1, basis) || gains > bundle.taken)
        throw inconsistent("A refresh makes " + std::to_string(gains) + " coefficients of " +
                           std::to_string(basis) + ", where there are " +
                           std::to_string(coefficients));
    coefficients = gains;
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

// Runs the table on names alone, so that a trajectory does not fail at its tenth step.
void check_table(const Bundle& bundle) {
    std::map<std::string, std::set<std::size_t>> made;
    std::size_t coefficients = 0;
    std::set<std::string> inputs;
    for (const Input& input : bundle.inputs) inputs.insert(input.name);
    for (std::size_t step = 0; step < bundle.table.size(); ++step) {
        const Row& row = bundle.table[step];
        const auto found = bundle.variants.find(row.variant);
        if (found == bundle.variants.end())
            throw inconsistent("The table names variant " + row.variant + ", which the plan lacks");
        check_reads(bundle, step, made);
        if (row.fit) check_fit(bundle, row, coefficients);
        std::set<std::string> known = inputs;
        add_given(bundle, row, known);
        for (const Call& call : found->second.calls) check_call(bundle, call, known);
        check_values(found->second, known);
        for (const std::string& delta : found->second.deltas) made[delta].insert(step);
    }
}

}  // namespace

const Variant& Bundle::plain() const {
    const Variant* best = nullptr;
    for (const auto& [name, variant] : variants)
        if (variant.kind == "refresh" && (!best || variant.deltas.size() < best->deltas.size()))
            best = &variant;
    if (!best) throw inconsistent("The plan has no refresh variant");
    return *best;
}

std::size_t Bundle::buffers() const { return std::max<std::size_t>(1, taken); }

std::string Bundle::buffer(const std::string& delta, std::size_t age) const {
    if (age == 0) return delta;
    return delta + kBefore + (schema == kOlder ? "" : "_" + std::to_string(age));
}

Bundle read_bundle(const fs::path& folder) {
    try {
        const json plan = parse_plan(folder / "plan.json");
        check_files(plan.at("files"), folder);
        Bundle bundle = read_plan(plan, folder);
        for (const auto& [name, segment] : bundle.segments)
            if (!plan.at("files").contains(segment.file))
                throw inconsistent("Segment " + name + " is in " + segment.file +
                                   ", which is not among the plan's files");
        check_table(bundle);
        read_coefficients(bundle);
        return bundle;
    } catch (const json::exception& error) {
        throw inconsistent((folder / "plan.json").string() + " is no plan: " + error.what());
    }
}
