// Do the parts of a plan fit together? What reading it does not show.
#pragma once

#include "bundle.hpp"
#include "tensor.hpp"

Refusal inconsistent(const std::string& fact);

// Runs the table on names alone, so that a trajectory does not fail at its tenth step.
void check_table(const Bundle& bundle);
