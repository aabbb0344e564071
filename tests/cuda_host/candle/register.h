// Makes one of candle's kernels known by its name.
#pragma once
#include "cuda_fp16.h"

#define SAM_LADDER_KERNEL(name) \
    static emulation::Registrar registrar_##name(#name, &name, [](void** arguments) { emulation::call_kernel(&name, arguments); });
