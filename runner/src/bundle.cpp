#include "bundle.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr int kSchema = 1;

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
    Variant variant{from.at("name"), from.at("kind"), {}, {}, from.at("deltas"), {}};
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

Row read_row(const json& from) {
    Row row{from.at("variant"), std::nullopt};
    if (from.contains("trend") && !from["trend"].is_null()) row.trend = from["trend"].get<float>();
    return row;
}

Bundle read_plan(const json& plan, const fs::path& folder) {
    Bundle bundle{folder, plan.at("format"), plan.at("order"), {}, {}, {}, {}, {}, {}};
    for (const auto& [name, ends] : plan.at("dimensions").items())
        bundle.dimensions[name] = read_range(ends);
    for (const json& input : plan.at("inputs")) bundle.inputs.push_back(read_input(input));
    for (const auto& [name, value] : plan.at("values").items())
        bundle.values[name] = read_value(value);
    for (const json& segment : plan.at("segments"))
        bundle.segments[segment.at("name")] = read_segment(segment);
    for (const json& variant : plan.at("variants"))
        bundle.variants[variant.at("name")] = read_variant(variant);
    for (const json& row : plan.at("table")) bundle.table.push_back(read_row(row));
    return bundle;
}

json parse_plan(const fs::path& path) {
    std::ifstream file(path);
    if (!file) throw Refusal(path.string() + " cannot be read", "Give the folder of a plan bundle");
    const json plan = json::parse(file);
    const json& schema = plan.at("schema");
    if (schema != kSchema)
        throw Refusal(path.string() + " has schema " + schema.dump() + ", this runner reads " +
                          std::to_string(kSchema),
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

// Runs the table on names alone, so that a trajectory does not fail at its tenth step.
void check_table(const Bundle& bundle) {
    std::set<std::string> held;
    for (const Input& input : bundle.inputs) held.insert(input.name);
    for (const Row& row : bundle.table) {
        const auto found = bundle.variants.find(row.variant);
        if (found == bundle.variants.end())
            throw inconsistent("The table names variant " + row.variant + ", which the plan lacks");
        std::set<std::string> known = held;
        if (row.trend) known.insert("trend");
        for (const Call& call : found->second.calls) check_call(bundle, call, known);
        check_values(found->second, known);
        for (const std::string& delta : found->second.deltas) {
            held.insert(delta);
            if (bundle.order > 0) held.insert(delta + "_before");
        }
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
        return bundle;
    } catch (const json::exception& error) {
        throw inconsistent((folder / "plan.json").string() + " is no plan: " + error.what());
    }
}
