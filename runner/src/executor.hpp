// Runs the rows of a trajectory: the calls of their variants, one after the other.
#pragma once

#include "deltas.hpp"
#include "segment.hpp"

class Executor {
  public:
    // Loads the segments that the rows call; `inputs` give the sizes of the dimensions.
    Executor(const Bundle& bundle, const std::vector<Row>& rows, const Settings& settings,
             const std::vector<Tensor>& inputs);

    // The variant's first result. Rows are run in order: a refresh leaves deltas for later ones.
    Tensor run(std::size_t step, const std::vector<Tensor>& inputs);

    const Sizes& sizes() const { return sizes_; }
    std::size_t delta_bytes() const { return deltas_.bytes(); }  // held for later rows

  private:
    void bind_sizes(const std::vector<Tensor>& inputs);
    void check(const std::string& name, const Tensor& tensor, const Value& value) const;
    void run_call(const Call& call, std::map<std::string, Tensor>& values);

    const Bundle& bundle_;
    const std::vector<Row>& rows_;
    Sizes sizes_;
    std::unique_ptr<Engine> engine_;
    std::map<std::string, std::unique_ptr<Segment>> segments_;
    Deltas deltas_;
};
