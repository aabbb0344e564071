// bfloat16 stands with float16.
#pragma once
#include "cuda_fp16.h"
