// Which kernels this machine can run.
#pragma once

#include <vector>

#include "kernels.h"

namespace xnor {

// The fastest first; portable is always there.
const std::vector<const Kernels*>& available_kernels();

}  // namespace xnor
