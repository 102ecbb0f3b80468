#include "bundle.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "checks.hpp"

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr int kSchema = 2, kOlder = 1;
constexpr std::size_t kMost = 4;  // deltas of a stream that are weighed
const std::string kBefore = "_before";  // after the name of a delta: of an earlier refresh
const std::string kAlone = "-";         // the branch of a trajectory with one call a step

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
    const json& branches = from.at("branches");
    const json& weights = branches.contains(kAlone) ? branches.at(kAlone) : from.at("weights");
    row.weights = weights.get<std::vector<std::vector<float>>>();
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
    if (!bundle.fits()) return;
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

}  // namespace

const Variant& Bundle::plain() const {
    const Variant* best = nullptr;
    for (const auto& [name, variant] : variants)
        if (variant.kind == "refresh" && (!best || variant.deltas.size() < best->deltas.size()))
            best = &variant;
    if (!best) throw inconsistent("The plan has no refresh variant");
    return *best;
}

bool Bundle::fits() const {
    const auto fits = [](const Row& row) { return row.fit.has_value(); };
    return std::any_of(table.begin(), table.end(), fits);
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
