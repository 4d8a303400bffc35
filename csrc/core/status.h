// What a solve found; kernels report it, the caller turns it into a sentence.
#pragma once

#include <cstdint>

namespace diffaccel {

enum class Status : uint8_t { kOk = 0, kInfeasible = 1, kInvalid = 2 };

}  // namespace diffaccel
