// ONNX Runtime on the CPU: one session a segment, one thread pool for all.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#include <onnxruntime_session_options_config_keys.h>

#include <algorithm>

#include "segment.hpp"

namespace {

const std::pair<Dtype, ONNXTensorElementDataType> kTypes[] = {
    {Dtype::f64, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE},
    {Dtype::f32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
    {Dtype::f16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {Dtype::bf16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16},
    {Dtype::i64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
    {Dtype::i32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
    {Dtype::u8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
    {Dtype::b8, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL},
};

ONNXTensorElementDataType onnx_type(Dtype dtype) {
    for (const auto& [ours, theirs] : kTypes)
        if (ours == dtype) return theirs;
    throw std::logic_error("a dtype without an entry in kTypes");
}

Dtype dtype_of(ONNXTensorElementDataType type) {
    for (const auto& [ours, theirs] : kTypes)
        if (theirs == type) return ours;
    throw Refusal("ONNX element type " + std::to_string(type) + " leaves a segment",
                  "Export with a dtype that the runner knows");
}

// An OrtValue over our memory. ONNX Runtime does not write to inputs; its API only lacks the const.
Ort::Value borrow(const Ort::MemoryInfo& memory, const Tensor& tensor) {
    return Ort::Value::CreateTensor(memory, const_cast<void*>(tensor.data.get()), tensor.bytes(),
                                    tensor.shape.data(), tensor.shape.size(),
                                    onnx_type(tensor.dtype));
}

// A tensor that keeps the OrtValue, and with it the memory, alive. An input that the segment hands
// through is lent by its owner.
Tensor adopt(Ort::Value&& value, const std::vector<Tensor>& inputs) {
    for (const Tensor& input : inputs)
        if (input.data.get() == value.GetTensorRawData()) return input;
    auto owner = std::make_shared<Ort::Value>(std::move(value));
    const auto description = owner->GetTensorTypeAndShapeInfo();
    Tensor tensor{dtype_of(description.GetElementType()), description.GetShape(), nullptr};
    tensor.data = std::shared_ptr<const void>(owner, owner->GetTensorMutableRawData());
    return tensor;
}

void check_names(const SegmentPlan& plan, std::vector<std::string> names,
                 std::vector<std::string> planned) {
    std::sort(names.begin(), names.end());
    std::sort(planned.begin(), planned.end());
    if (names != planned)
        throw Refusal(plan.file + " has other inputs or outputs than the plan says",
                      "Export the bundle again");
}

class OnnxSegment : public Segment {
  public:
    OnnxSegment(const SegmentPlan& plan, Ort::Session&& session)
        : plan_(plan), session_(std::move(session)), binding_(session_) {
        check_names(plan, session_.GetInputNames(), plan.inputs);
        check_names(plan, session_.GetOutputNames(), plan.outputs);
    }

    std::vector<Tensor> run(const std::vector<Tensor>& inputs) override {
        binding_.ClearBoundInputs();
        for (std::size_t i = 0; i < inputs.size(); ++i)
            binding_.BindInput(plan_.inputs[i].c_str(), borrow(memory_, inputs[i]));
        // Bound anew, so that ONNX Runtime allocates: else it would write over the last outputs,
        // and a delta of theirs may still be read.
        binding_.ClearBoundOutputs();
        for (const std::string& name : plan_.outputs) binding_.BindOutput(name.c_str(), memory_);
        session_.Run(Ort::RunOptions{nullptr}, binding_);
        std::vector<Tensor> outputs;
        for (Ort::Value& value : binding_.GetOutputValues())
            outputs.push_back(adopt(std::move(value), inputs));
        return outputs;
    }

  private:
    const SegmentPlan& plan_;
    Ort::Session session_;
    Ort::IoBinding binding_;
    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
};

class OnnxEngine : public Engine {
  public:
    OnnxEngine(const Bundle& bundle, const Settings& settings) : folder_(bundle.folder) {
        Ort::ThreadingOptions threads;
        threads.SetGlobalIntraOpNumThreads(settings.threads);
        environment_ = Ort::Env(threads, ORT_LOGGING_LEVEL_ERROR, "deltapass");
        options_.DisablePerSessionThreads();
        options_.AddConfigEntry(kOrtSessionOptionsConfigDisablePrepacking,
                                settings.prepack ? "0" : "1");
        // Where the segments' initializers are looked for. ONNX Runtime maps the file; handed over
        // in memory, it would copy them.
        options_.AddConfigEntry(kOrtSessionOptionsModelExternalInitializersFileFolderPath,
                                folder_.c_str());
    }

    std::unique_ptr<Segment> load(const SegmentPlan& plan) override {
        try {
            Ort::Session session(environment_, (folder_ / plan.file).c_str(), options_);
            return std::make_unique<OnnxSegment>(plan, std::move(session));
        } catch (const Ort::Exception& error) {
            throw Refusal(plan.file + " cannot be loaded: " + error.what(),
                          "Export the bundle again, for the installed ONNX Runtime");
        }
    }

  private:
    std::filesystem::path folder_;
    Ort::Env environment_{nullptr};
    Ort::SessionOptions options_;
};

}  // namespace

std::unique_ptr<Engine> onnx_engine(const Bundle& bundle, const Settings& settings) {
    const OrtApiBase* base = OrtGetApiBase();
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (!api)
        throw Refusal(std::string("libonnxruntime ") + base->GetVersionString() +
                          " is older than API " + std::to_string(ORT_API_VERSION) +
                          " of the headers",
                      "Install a newer onnxruntime, or build with older headers");
    Ort::InitApi(api);
    return std::make_unique<OnnxEngine>(bundle, settings);
}
