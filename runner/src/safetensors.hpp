// Reading (memory-mapped) and writing of safetensors files.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "tensor.hpp"

// A file in memory for as long as anything points into it.
struct Mapping {
    std::shared_ptr<const char> data;
    std::size_t bytes = 0;
};

Mapping map_file(const std::filesystem::path& path);

// The tensors of a file by name, as views of the mapping.
std::map<std::string, Tensor> read_safetensors(const Mapping& file, const std::string& name);

void write_safetensors(const std::filesystem::path& path, const std::string& name,
                       const Tensor& tensor);
