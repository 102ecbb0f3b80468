#include "tensor.hpp"

#include <algorithm>

namespace {

const DtypeInfo kDtypes[] = {
    {Dtype::f64, "float64", "F64", 8}, {Dtype::f32, "float32", "F32", 4},
    {Dtype::f16, "float16", "F16", 2}, {Dtype::bf16, "bfloat16", "BF16", 2},
    {Dtype::i64, "int64", "I64", 8},   {Dtype::i32, "int32", "I32", 4},
    {Dtype::u8, "uint8", "U8", 1},     {Dtype::b8, "bool", "BOOL", 1},
};

const std::int64_t kMost = std::int64_t{1} << 48;  // elements; times eight bytes still fits

}  // namespace

const DtypeInfo& info(Dtype dtype) {
    for (const DtypeInfo& entry : kDtypes)
        if (entry.dtype == dtype) return entry;
    throw std::logic_error("a dtype without an entry in kDtypes");
}

Dtype dtype_named(const std::string& name_or_tag) {
    for (const DtypeInfo& entry : kDtypes)
        if (name_or_tag == entry.name || name_or_tag == entry.tag) return entry.dtype;
    throw Refusal("a tensor has dtype " + name_or_tag, "Export with a dtype that the runner knows");
}

std::int64_t Tensor::elements() const {
    std::int64_t count = 1;
    for (std::int64_t size : shape)
        if (size < 0 || __builtin_mul_overflow(count, size, &count) || count > kMost)
            throw Refusal("A tensor has shape " + text(shape), "Give sizes that memory can hold");
    return count;
}

std::size_t Tensor::bytes() const { return elements() * info(dtype).bytes; }

const float* Tensor::floats() const {
    if (dtype != Dtype::f32)
        throw Refusal(std::string("a ") + info(dtype).name + " tensor takes part in the sampler",
                      "The sample, the sampler and the model's output have to be float32");
    return static_cast<const float*>(data.get());
}

Tensor Tensor::row(std::int64_t index) const {
    Tensor result{dtype, Shape(shape.begin() + 1, shape.end()), nullptr};
    auto start = static_cast<const std::byte*>(data.get()) + index * result.bytes();
    result.data = std::shared_ptr<const void>(data, start);
    return result;
}

Tensor empty_floats(const Shape& shape, float** data) {
    Tensor result{Dtype::f32, shape, nullptr};
    std::shared_ptr<float> memory(new float[result.elements()], std::default_delete<float[]>());
    *data = memory.get();
    result.data = memory;
    return result;
}

Tensor scalar(float value) {
    float* data = nullptr;
    Tensor result = empty_floats({}, &data);
    *data = value;
    return result;
}

Tensor vector_of(const std::vector<float>& values) {
    float* data = nullptr;
    Tensor result = empty_floats({static_cast<std::int64_t>(values.size())}, &data);
    std::copy(values.begin(), values.end(), data);
    return result;
}

std::string text(const Shape& shape) {
    std::string result;
    for (std::int64_t size : shape) result += (result.empty() ? "" : ", ") + std::to_string(size);
    return "[" + result + "]";
}
