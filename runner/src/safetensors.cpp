#include "safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

using nlohmann::json;

namespace {

constexpr std::int64_t kLargest = std::int64_t{1} << 40;  // elements; more is no tensor but a fault

Refusal broken(const std::string& name, const std::string& why) {
    return Refusal(name + " is no whole safetensors file: " + why, "Write or copy it again");
}

Tensor view(const Mapping& file, std::size_t start, const std::string& name, const json& entry) {
    Tensor tensor{dtype_named(entry.at("dtype")), entry.at("shape").get<Shape>(), nullptr};
    const std::size_t from = entry.at("data_offsets").at(0), to = entry.at("data_offsets").at(1);
    for (std::int64_t size : tensor.shape)
        if (size < 0 || size > kLargest) throw broken(name, "a shape is " + text(tensor.shape));
    if (from > to || to > file.bytes - start)
        throw broken(name, "a tensor ends at byte " + std::to_string(start + to) + " of " +
                               std::to_string(file.bytes));
    if ((start + from) % info(tensor.dtype).bytes != 0)
        throw broken(name, "a tensor is not aligned");
    if (to - from != tensor.bytes())
        throw broken(name, "a tensor of shape " + text(tensor.shape) + " has " +
                               std::to_string(to - from) + " bytes");
    tensor.data = std::shared_ptr<const void>(file.data, file.data.get() + start + from);
    return tensor;
}

}  // namespace

Mapping map_file(const std::filesystem::path& path) {
    const int handle = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (handle < 0)
        throw Refusal(path.string() + " cannot be opened: " + std::strerror(errno),
                      "Check the path and that the file was copied");
    struct stat status{};
    const bool known = fstat(handle, &status) == 0;
    const std::size_t bytes = known ? status.st_size : 0;
    void* start = bytes ? mmap(nullptr, bytes, PROT_READ, MAP_SHARED, handle, 0) : MAP_FAILED;
    close(handle);
    if (start == MAP_FAILED)
        throw Refusal(path.string() + " has no bytes to map", "Give a file, whole and not empty");
    auto unmap = [bytes](const char* memory) { munmap(const_cast<char*>(memory), bytes); };
    return {std::shared_ptr<const char>(static_cast<const char*>(start), unmap), bytes};
}

std::map<std::string, Tensor> read_safetensors(const Mapping& file, const std::string& name) {
    std::uint64_t length = 0;
    if (file.bytes < sizeof length)
        throw broken(name, "it has " + std::to_string(file.bytes) + " bytes");
    std::memcpy(&length, file.data.get(), sizeof length);
    if (length > file.bytes - sizeof length)
        throw broken(name, "its header should have " + std::to_string(length) + " bytes");
    const char* header = file.data.get() + sizeof length;
    std::map<std::string, Tensor> tensors;
    try {
        const json entries = json::parse(header, header + length);
        for (const auto& [key, entry] : entries.items())
            if (key != "__metadata__")
                tensors[key] = view(file, sizeof length + length, name, entry);
    } catch (const json::exception& error) {
        throw broken(name, error.what());
    }
    return tensors;
}

void write_safetensors(const std::filesystem::path& path, const std::string& name,
                       const Tensor& tensor) {
    const json entry = {{"dtype", info(tensor.dtype).tag},
                        {"shape", tensor.shape},
                        {"data_offsets", {0, tensor.bytes()}}};
    std::string header = json{{name, entry}}.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');  // the data start at a multiple of eight
    const std::uint64_t length = header.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), sizeof length);
    file.write(header.data(), header.size());
    file.write(static_cast<const char*>(tensor.data.get()), tensor.bytes());
    file.close();
    if (!file)
        throw Refusal(path.string() + " cannot be written", "Give a writable path with room");
}
