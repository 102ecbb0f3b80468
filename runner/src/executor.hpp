// Runs the variants of a bundle: one call after the other, and the deltas kept between steps.
#pragma once

#include "segment.hpp"

class Executor {
  public:
    // Loads the segments that the rows call; `inputs` give the sizes of the dimensions.
    Executor(const Bundle& bundle, const std::vector<Row>& rows, const Settings& settings,
             const std::vector<Tensor>& inputs);

    // The variant's first result. A refresh leaves its deltas for later rows.
    Tensor run(const Row& row, const std::vector<Tensor>& inputs);

    const Sizes& sizes() const { return sizes_; }

  private:
    void bind_sizes(const std::vector<Tensor>& inputs);
    void check(const std::string& name, const Tensor& tensor, const Value& value) const;
    void run_call(const Call& call, std::map<std::string, Tensor>& values);
    void push_deltas(const Variant& variant, const std::map<std::string, Tensor>& values);

    const Bundle& bundle_;
    Sizes sizes_;
    std::unique_ptr<Engine> engine_;
    std::map<std::string, std::unique_ptr<Segment>> segments_;
    std::map<std::string, Tensor> deltas_;
};
