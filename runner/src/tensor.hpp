// A tensor in host memory, dense and row-major. It shares its memory; passing it on copies nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using Shape = std::vector<std::int64_t>;

enum class Dtype { f64, f32, f16, bf16, i64, i32, u8, b8 };

struct DtypeInfo {
    Dtype dtype;
    const char* name;  // in plan.json
    const char* tag;   // in safetensors
    std::size_t bytes;
};

// What was found, then what to do: the text of every error this program means to give.
struct Refusal : std::runtime_error {
    Refusal(const std::string& fact, const std::string& remedy)
        : std::runtime_error(fact + ". " + remedy + ".") {}
};

const DtypeInfo& info(Dtype dtype);
Dtype dtype_named(const std::string& name_or_tag);

struct Tensor {
    Dtype dtype = Dtype::f32;
    Shape shape;
    std::shared_ptr<const void> data;  // owns, or keeps alive, the memory

    std::int64_t elements() const;
    std::size_t bytes() const;
    const float* floats() const;           // refuses other dtypes
    Tensor row(std::int64_t index) const;  // a view along the first dimension
};

Tensor empty_floats(const Shape& shape, float** data);
Tensor scalar(float value);
Tensor vector_of(const std::vector<float>& values);
std::string text(const Shape& shape);
