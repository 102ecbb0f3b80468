// A plan bundle: what plan.json says, read and checked before anything is loaded.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dimensions.hpp"

struct Value {
    std::string dtype;
    Formulas shape;
};

struct Input : Value {
    std::string name;
    std::string role;
};

struct SegmentPlan {
    std::string name;
    std::string file;
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;
    std::map<std::string, std::string> weights;  // constant of the file -> tensor; aoti only
};

struct Call {
    std::string segment;
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;
};

struct Variant {
    std::string name;
    std::string kind;
    std::vector<Call> calls;
    std::vector<std::string> results;
    std::vector<std::string> deltas;
    std::map<std::string, double> macs;
    std::vector<std::string> reads;  // the deltas it reads, by the name of the newest
};

// A refresh of a predictor that accumulates: coefficients += gains * (delta - basis . coefficients).
struct Fit {
    std::vector<double> basis;
    std::vector<double> gains;
};

struct Row {
    std::string variant;
    std::vector<std::size_t> reads = {};           // refreshes, newest first; of a fit: coefficients
    std::vector<std::vector<float>> weights = {};  // one vector a stream, newest delta first
    std::optional<Fit> fit = std::nullopt;
    std::optional<float> trend = std::nullopt;  // of schema 1: along the line of the last two deltas
};

struct Range {
    std::int64_t least = 1;
    std::optional<std::int64_t> greatest;  // none: no bound
};

struct Bundle {
    std::filesystem::path folder;
    std::string format;
    int schema = 0;
    std::size_t taken = 0;  // weighted deltas of a stream; 0: the newest one as it is
    std::map<std::string, Range> dimensions;
    std::vector<Input> inputs;
    std::map<std::string, Value> values;
    std::map<std::string, SegmentPlan> segments;
    std::map<std::string, Variant> variants;
    std::vector<Row> table;

    const Variant& plain() const;  // the full model: the refresh that gives the fewest deltas
    std::size_t buffers() const;   // deltas of a stream that a cached variant takes
    bool fits() const;             // whether coefficients are held in place of deltas
    // The name under which a variant takes a delta of so many refreshes before the newest.
    std::string buffer(const std::string& delta, std::size_t age) const;
};

Bundle read_bundle(const std::filesystem::path& folder);
