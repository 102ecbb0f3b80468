// What runs a segment. Each format is one source file behind this interface.
#pragma once

#include <memory>

#include "bundle.hpp"
#include "safetensors.hpp"

struct Settings {
    int threads = 1;
    bool prepack = true;  // ONNX: copies of the weights laid out for speed, one a session
};

class Segment {
  public:
    virtual ~Segment() = default;
    // Reads the inputs in place. The outputs own their memory and outlive the next run.
    virtual std::vector<Tensor> run(const std::vector<Tensor>& inputs) = 0;
};

class Engine {
  public:
    virtual ~Engine() = default;
    virtual std::unique_ptr<Segment> load(const SegmentPlan& plan) = 0;
};

std::unique_ptr<Engine> onnx_engine(const Bundle& bundle, const Settings& settings);
std::unique_ptr<Engine> aoti_engine(const Bundle& bundle, const Settings& settings);
std::unique_ptr<Engine> make_engine(const Bundle& bundle, const Settings& settings);
