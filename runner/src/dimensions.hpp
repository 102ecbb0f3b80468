// Sizes that differ between trajectories, such as the batch: named, and computed from by formulas.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tensor.hpp"

using Sizes = std::map<std::string, std::int64_t>;
using Formulas = std::vector<std::string>;  // one a dimension: "28", "batch", "(height//2)*width"

// A formula of whole numbers, names, + - * // % and parentheses, with Python's rounding.
std::int64_t evaluate(const std::string& formula, const Sizes& sizes);
Shape evaluate(const Formulas& formulas, const Sizes& sizes);

// Adds to `sizes` what the dimensions that are plain names tell.
void bind(const std::string& tensor, const Formulas& formulas, const Shape& shape, Sizes& sizes);
