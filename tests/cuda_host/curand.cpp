// cuRAND: a generator that is made with each device, and whose numbers the program does not use.
#include "driver.h"

#include <curand.h>

struct curandGenerator_st {
    CUstream stream = nullptr;
};

HOST_API curandStatus_t curandCreateGenerator(curandGenerator_t* out, curandRngType_t) {
    ENTER("curandCreateGenerator");
    *out = new curandGenerator_st();
    return CURAND_STATUS_SUCCESS;
}

HOST_API curandStatus_t curandDestroyGenerator(curandGenerator_t generator) {
    ENTER("curandDestroyGenerator");
    delete generator;
    return CURAND_STATUS_SUCCESS;
}

HOST_API curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t, unsigned long long) {
    ENTER("curandSetPseudoRandomGeneratorSeed");
    return CURAND_STATUS_SUCCESS;
}

HOST_API curandStatus_t curandSetStream(curandGenerator_t generator, cudaStream_t stream) {
    ENTER("curandSetStream");
    generator->stream = reinterpret_cast<CUstream>(stream);
    return CURAND_STATUS_SUCCESS;
}

HOST_API curandStatus_t curandSetGeneratorOffset(curandGenerator_t, unsigned long long) {
    ENTER("curandSetGeneratorOffset");
    return CURAND_STATUS_SUCCESS;
}
