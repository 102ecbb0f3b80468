// What one run is given, and the sampler that turns the model's outputs into the next sample.
#pragma once

#include <deque>
#include <filesystem>
#include <map>
#include <optional>

#include "bundle.hpp"
#include "tensor.hpp"

struct Trajectory {
    std::map<std::string, Tensor> constant;  // inputs of the model, the same at every step
    std::map<std::string, Tensor> stepped;   // inputs with a leading dimension of steps
    Tensor sample;
    Tensor sample_factors;  // [steps]
    Tensor output_factors;  // [steps, k]
    std::optional<float> guidance;

    // The inputs of the model, in the bundle's order.
    std::vector<Tensor> inputs(const Bundle& bundle, const Tensor& sample, std::int64_t step) const;
};

Trajectory read_trajectory(const std::filesystem::path& path, const Bundle& bundle);

// x <- cx[i] * x + sum over j of co[i, j] * out_{i-j}, in float32, added up from left to right.
class Sampler {
  public:
    explicit Sampler(const Trajectory& trajectory) : trajectory_(trajectory) {}

    // `output` is the model's first result; with guidance its halves are joined first.
    Tensor update(const Tensor& sample, const Tensor& output, std::int64_t step);

  private:
    const Trajectory& trajectory_;
    std::deque<Tensor> outputs_;  // newest first
};
