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
};

struct Row {
    std::string variant;
    std::optional<float> trend;  // of order 1: how far along the line of the last two deltas
};

struct Range {
    std::int64_t least = 1;
    std::optional<std::int64_t> greatest;  // none: no bound
};

struct Bundle {
    std::filesystem::path folder;
    std::string format;
    int order = 0;
    std::map<std::string, Range> dimensions;
    std::vector<Input> inputs;
    std::map<std::string, Value> values;
    std::map<std::string, SegmentPlan> segments;
    std::map<std::string, Variant> variants;
    std::vector<Row> table;

    const Variant& plain() const;  // the full model: the refresh that gives the fewest deltas
};

Bundle read_bundle(const std::filesystem::path& folder);
