// The deltas that refreshes leave for later rows: as many as these read, and no more.
#pragma once

#include "bundle.hpp"
#include "tensor.hpp"

// Refuses a type of which no fit can be brought up to date.
void check_fitted(const std::string& dtype);

class Deltas {
  public:
    Deltas(const Bundle& bundle, const std::vector<Row>& rows);

    // Adds what a cached row reads under the names its variant knows: deltas, older ones, weights.
    void give(std::size_t step, std::map<std::string, Tensor>& values) const;

    // Takes the deltas that a refresh made, and lets go of all that no later row reads.
    void take(std::size_t step, const std::map<std::string, Tensor>& values);

    std::size_t bytes() const;  // of all that is held

  private:
    using Held = std::map<std::size_t, Tensor>;  // by refresh; of a fit, by coefficient

    const Tensor& delta(const Held& held, const Row& row, std::size_t age) const;

    const Bundle& bundle_;
    const std::vector<Row>& rows_;
    std::map<std::string, std::map<std::size_t, std::size_t>> last_;  // the last row that reads it
    std::map<std::string, Held> held_;
};
