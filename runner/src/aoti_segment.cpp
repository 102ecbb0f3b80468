// AOTInductor on the CPU: code from a .pt2 a segment, weights bound from one mapping for all.
#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include "segment.hpp"

namespace {

const std::pair<Dtype, at::ScalarType> kTypes[] = {
    {Dtype::f64, at::kDouble},    {Dtype::f32, at::kFloat}, {Dtype::f16, at::kHalf},
    {Dtype::bf16, at::kBFloat16}, {Dtype::i64, at::kLong},  {Dtype::i32, at::kInt},
    {Dtype::u8, at::kByte},       {Dtype::b8, at::kBool},
};

at::ScalarType torch_type(Dtype dtype) {
    for (const auto& [ours, theirs] : kTypes)
        if (ours == dtype) return theirs;
    throw std::logic_error("a dtype without an entry in kTypes");
}

Dtype dtype_of(at::ScalarType type) {
    for (const auto& [ours, theirs] : kTypes)
        if (theirs == type) return ours;
    throw Refusal(std::string("dtype ") + c10::toString(type) + " leaves a segment",
                  "Export with a dtype that the runner knows");
}

// A tensor over our memory, kept alive by it: an output may be an input handed through.
// Compiled code does not write to its inputs or constants.
at::Tensor borrow(const Tensor& tensor) {
    return torch::from_blob(
        const_cast<void*>(tensor.data.get()), tensor.shape, [owner = tensor.data](void*) {},
        torch_type(tensor.dtype));
}

// A tensor that keeps torch's alive; dense, since ours have no strides.
Tensor adopt(const at::Tensor& given) {
    auto owner = std::make_shared<at::Tensor>(given.contiguous());
    Tensor tensor{dtype_of(owner->scalar_type()), owner->sizes().vec(), nullptr};
    tensor.data = std::shared_ptr<const void>(owner, owner->const_data_ptr());
    return tensor;
}

class AotiSegment : public Segment {
  public:
    AotiSegment(const std::string& path, const SegmentPlan& plan,
                const std::map<std::string, Tensor>& weights, bool shared)
        : loader_(path) {
        std::unordered_map<std::string, at::Tensor> constants;
        for (const std::string& constant : loader_.get_constant_fqns())
            constants[constant] = borrow(weights.at(plan.weights.at(constant)));
        // What is compiled in is the first block's, and wrong for others that share the file.
        if (shared && constants.size() != plan.weights.size())
            throw Refusal(plan.file + " takes " + std::to_string(constants.size()) + " of " +
                              std::to_string(plan.weights.size()) +
                              " weights, others are compiled in",
                          "Export with Inductor's option always_keep_tensor_constants");
        // user_managed: the segment points into the mapping instead of copying.
        if (!constants.empty()) loader_.load_constants(constants, false, true, true);
    }

    std::vector<Tensor> run(const std::vector<Tensor>& inputs) override {
        const c10::InferenceMode guard;
        std::vector<at::Tensor> given;
        for (const Tensor& input : inputs) given.push_back(borrow(input));
        std::vector<Tensor> outputs;
        for (const at::Tensor& output : loader_.run(given)) outputs.push_back(adopt(output));
        return outputs;
    }

  private:
    torch::inductor::AOTIModelPackageLoader loader_;
};

class AotiEngine : public Engine {
  public:
    AotiEngine(const Bundle& bundle, const Settings& settings) : folder_(bundle.folder) {
        const std::filesystem::path weights = folder_ / "weights.safetensors";
        if (std::filesystem::exists(weights))
            weights_ = read_safetensors(map_file(weights), weights.string());
        for (const auto& [name, segment] : bundle.segments) ++uses_[segment.file];
        at::set_num_threads(settings.threads);
    }

    std::unique_ptr<Segment> load(const SegmentPlan& plan) override {
        try {
            return std::make_unique<AotiSegment>((folder_ / plan.file).string(), plan, weights_,
                                                 uses_.at(plan.file) > 1);
        } catch (const std::out_of_range&) {
            throw Refusal(plan.file + " has a constant that the plan knows no weight for",
                          "Export the bundle again");
        } catch (const c10::Error& error) {
            throw Refusal(
                plan.file + " cannot be loaded: " + error.what_without_backtrace(),
                "Export the bundle again, with the PyTorch that the runner was built with");
        }
    }

  private:
    std::filesystem::path folder_;
    std::map<std::string, Tensor> weights_;
    std::map<std::string, int> uses_;  // file -> segments that are made from it
};

}  // namespace

std::unique_ptr<Engine> aoti_engine(const Bundle& bundle, const Settings& settings) {
    return std::make_unique<AotiEngine>(bundle, settings);
}
