// runner BUNDLE INPUT OUTPUT: one trajectory of a plan bundle, reported as JSON.
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "executor.hpp"
#include "trajectory.hpp"

using nlohmann::ordered_json;

namespace {

constexpr const char* kUsage =
    "Usage: runner BUNDLE INPUT.safetensors OUTPUT.safetensors [--threads N] [--plain] "
    "[--no-prepack]";

struct Arguments {
    std::vector<std::string> paths;
    Settings settings;
    bool plain = false;
};

class Stopwatch {
  public:
    double milliseconds() const {
        const auto passed = std::chrono::steady_clock::now() - start_;
        return std::chrono::duration<double, std::milli>(passed).count();
    }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

int count_of(const std::string& word) {
    const bool digits = !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
    const int count = digits && word.size() < 5 ? std::stoi(word) : 0;
    if (count < 1) throw Refusal("--threads is '" + word + "'", "Give a number from 1 to 9999");
    return count;
}

Arguments parse(int count, char** words) {
    Arguments result;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        if (word == "--threads")
            result.settings.threads = count_of(i + 1 < count ? words[++i] : "");
        else if (word == "--plain")
            result.plain = true;
        else if (word == "--no-prepack")
            result.settings.prepack = false;
        else if (word.rfind("--", 0) == 0)
            throw Refusal("There is no option " + word, kUsage);
        else
            result.paths.push_back(word);
    }
    if (result.paths.size() != 3)
        throw Refusal(std::to_string(result.paths.size()) + " paths were given, 3 are needed",
                      kUsage);
    return result;
}

std::vector<Row> rows_of(const Bundle& bundle, bool plain) {
    if (!plain) return bundle.table;
    return std::vector<Row>(bundle.table.size(), Row{bundle.plain().name});
}

std::map<std::string, double> sum_macs(const Bundle& bundle, const std::vector<Row>& rows) {
    std::map<std::string, double> total;
    for (const Row& row : rows)
        for (const auto& [kind, macs] : bundle.variants.at(row.variant).macs) total[kind] += macs;
    return total;
}

ordered_json run(const Arguments& arguments) {
    const Stopwatch loading;
    const Bundle bundle = read_bundle(arguments.paths[0]);
    const Trajectory trajectory = read_trajectory(arguments.paths[1], bundle);
    const std::vector<Row> rows = rows_of(bundle, arguments.plain);
    Tensor sample = trajectory.sample;
    Executor executor(bundle, rows, arguments.settings, trajectory.inputs(bundle, sample, 0));
    ordered_json report = {{"bundle", arguments.paths[0]},
                           {"format", bundle.format},
                           {"threads", arguments.settings.threads},
                           {"dimensions", executor.sizes()},
                           {"load_milliseconds", loading.milliseconds()}};
    Sampler sampler(trajectory);
    const Stopwatch whole;
    for (std::size_t step = 0; step < rows.size(); ++step) {
        const Stopwatch one;
        const Tensor output = executor.run(step, trajectory.inputs(bundle, sample, step));
        sample = sampler.update(sample, output, step);
        report["steps"].push_back({{"step", step},
                                   {"variant", rows[step].variant},
                                   {"milliseconds", one.milliseconds()},
                                   {"delta_bytes", executor.delta_bytes()},
                                   {"macs", bundle.variants.at(rows[step].variant).macs}});
    }
    report["milliseconds"] = whole.milliseconds();
    report["macs"] = sum_macs(bundle, rows);
    report["plain_macs"] = sum_macs(bundle, rows_of(bundle, true));
    write_safetensors(arguments.paths[2], "sample", sample);
    return report;
}

}  // namespace

int main(int count, char** words) {
    try {
        std::cout << run(parse(count, words)).dump(1) << std::endl;
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "runner: " << error.what() << std::endl;
        return 1;
    }
}
