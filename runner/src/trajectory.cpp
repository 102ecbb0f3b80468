#include "trajectory.hpp"

#include <algorithm>
#include <cstring>

#include "safetensors.hpp"

namespace {

const std::string kConstant = "input:", kStepped = "steps:";

bool starts_with(const std::string& name, const std::string& prefix) {
    return name.compare(0, prefix.size(), prefix) == 0;
}

Tensor take(std::map<std::string, Tensor>& tensors, const std::string& name) {
    const auto found = tensors.find(name);
    if (found == tensors.end())
        throw Refusal("The trajectory lacks the tensor " + name, "Add it to the input file");
    Tensor tensor = found->second;
    tensors.erase(found);
    return tensor;
}

void check_steps(const std::string& name, const Tensor& tensor, std::size_t steps) {
    if (tensor.shape.empty() || tensor.shape[0] != static_cast<std::int64_t>(steps))
        throw Refusal(name + " has shape " + text(tensor.shape) + ", the bundle's table has " +
                          std::to_string(steps) + " steps",
                      "Give one row a step, or export for another number of steps");
}

// Every input but the sample from the file, each exactly once.
void take_inputs(std::map<std::string, Tensor>& tensors, const Bundle& bundle, Trajectory& result) {
    for (const Input& input : bundle.inputs) {
        if (input.role == "sample") continue;
        const std::string stepped = kStepped + input.name;
        if (tensors.count(stepped)) {
            result.stepped[input.name] = take(tensors, stepped);
            check_steps(stepped, result.stepped[input.name], bundle.table.size());
        } else {
            result.constant[input.name] = take(tensors, kConstant + input.name);
        }
    }
    for (const auto& [name, tensor] : tensors)
        if (starts_with(name, kConstant) || starts_with(name, kStepped))
            throw Refusal(
                "The trajectory holds " + name + ", which the bundle does not take, or not twice",
                "Remove it from the input file");
}

void check_sampler(const Trajectory& trajectory, std::size_t steps) {
    check_steps("sampler.sample", trajectory.sample_factors, steps);
    check_steps("sampler.output", trajectory.output_factors, steps);
    const Shape& outputs = trajectory.output_factors.shape;
    if (trajectory.sample_factors.shape.size() != 1 || outputs.size() != 2 || outputs[1] < 1)
        throw Refusal("sampler.sample has shape " + text(trajectory.sample_factors.shape) +
                          ", sampler.output " + text(outputs),
                      "Give (steps) and (steps, k): a number a step, and k numbers a step");
    for (const Tensor* tensor :
         {&trajectory.sample, &trajectory.sample_factors, &trajectory.output_factors})
        tensor->floats();
    if (trajectory.sample.shape.size() < 2)
        throw Refusal("The sample has shape " + text(trajectory.sample.shape),
                      "Give a batch of channels: at least two dimensions");
}

Tensor doubled(const Tensor& sample) {
    Shape shape = sample.shape;
    shape[0] *= 2;
    float* data = nullptr;
    Tensor result = empty_floats(shape, &data);
    std::memcpy(data, sample.data.get(), sample.bytes());
    std::memcpy(data + sample.elements(), sample.data.get(), sample.bytes());
    return result;
}

// u + g * (c - u); the first half of the batch is the conditional one.
Tensor guided(const Tensor& output, float guidance) {
    Shape shape = output.shape;
    shape.at(0) /= 2;
    float* data = nullptr;
    Tensor result = empty_floats(shape, &data);
    const float* conditional = output.floats();
    const float* unconditional = conditional + result.elements();
    for (std::int64_t i = 0; i < result.elements(); ++i)
        data[i] = unconditional[i] + guidance * (conditional[i] - unconditional[i]);
    return result;
}

// The channels that the sample has too; models that learn a variance give more.
Tensor first_channels(const Tensor& output, const Shape& wanted) {
    Shape shape = output.shape;
    if (shape.size() > 1) shape[1] = std::min(shape[1], wanted[1]);
    if (shape != wanted)
        throw Refusal(
            "The model's output has shape " + text(output.shape) + ", the sample " + text(wanted),
            "Check the sample's shape, and whether guidance is given");
    if (output.shape == wanted) return output;
    float* data = nullptr;
    Tensor result = empty_floats(wanted, &data);
    const std::int64_t kept = result.elements() / wanted[0];
    for (std::int64_t i = 0; i < wanted[0]; ++i)
        std::memcpy(data + i * kept, output.row(i).floats(), kept * sizeof(float));
    return result;
}

}  // namespace

std::vector<Tensor> Trajectory::inputs(const Bundle& bundle, const Tensor& current,
                                       std::int64_t step) const {
    std::vector<Tensor> values;
    for (const Input& input : bundle.inputs) {
        if (input.role == "sample")
            values.push_back(guidance ? doubled(current) : current);
        else if (stepped.count(input.name))
            values.push_back(stepped.at(input.name).row(step));
        else
            values.push_back(constant.at(input.name));
    }
    return values;
}

Trajectory read_trajectory(const std::filesystem::path& path, const Bundle& bundle) {
    auto tensors = read_safetensors(map_file(path), path.string());
    Trajectory result;
    result.sample = take(tensors, "sample");
    result.sample_factors = take(tensors, "sampler.sample");
    result.output_factors = take(tensors, "sampler.output");
    if (tensors.count("guidance")) {
        const Tensor guidance = take(tensors, "guidance");
        if (guidance.elements() != 1)
            throw Refusal("guidance has shape " + text(guidance.shape), "Give one number");
        result.guidance = *guidance.floats();
    }
    take_inputs(tensors, bundle, result);
    check_sampler(result, bundle.table.size());
    return result;
}

Tensor Sampler::update(const Tensor& sample, const Tensor& output, std::int64_t step) {
    const Tensor joined = trajectory_.guidance ? guided(output, *trajectory_.guidance) : output;
    outputs_.push_front(first_channels(joined, sample.shape));
    const Tensor factors = trajectory_.output_factors.row(step);
    if (outputs_.size() > static_cast<std::size_t>(factors.elements())) outputs_.pop_back();
    float* data = nullptr;
    Tensor result = empty_floats(sample.shape, &data);
    const float factor = trajectory_.sample_factors.floats()[step];
    for (std::int64_t i = 0; i < result.elements(); ++i) data[i] = factor * sample.floats()[i];
    for (std::size_t j = 0; j < outputs_.size(); ++j) {
        const float* past = outputs_[j].floats();
        const float weight = factors.floats()[j];
        for (std::int64_t i = 0; i < result.elements(); ++i) data[i] += weight * past[i];
    }
    return result;
}
