//! Vector code without intrinsics: a body of plain loops is compiled per instruction set, and the best one for the machine is chosen at run
//! time.

/// Defines a function whose body is compiled for AVX-512, for AVX2 with FMA and for the target's baseline, with a choice at run
/// time. Inside the body the constant `FMA` says whether fused multiply-add is one instruction; see [`madd`].
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($t:ident: $bound:ident),+>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool $($(, $t: $bound)+)?>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
                fn avx512 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<true $($(, $t)+)?>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<true $($(, $t)+)?>($($arg),*)
                }
                if $crate::cpu::simd::has_avx512() {
                    // SAFETY: the features were just detected; AVX-512F implies AVX2 and FMA.
                    return unsafe { avx512($($arg),*) };
                }
                if $crate::cpu::simd::has_avx2() {
                    // SAFETY: the features were just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::<{ cfg!(target_arch = "aarch64") } $($(, $t)+)?>($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Whether the processor has the parts of AVX-512 for which functions are compiled.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq")
}

/// Whether the processor has AVX2 and fused multiply-add.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// 0 if `zero`, otherwise `x`, without a branch, so that loops over it become vector code.
#[inline(always)]
pub(crate) fn zero_if(zero: bool, x: f32) -> f32 {
    f32::from_bits(x.to_bits() & u32::from(zero).wrapping_sub(1))
}

/// Lanes of the accumulators in sums and maxima: two AVX-512 or four AVX2 registers, enough to hide an addition's latency.
pub(crate) const LANES: usize = 32;

/// Sum of `f(x)` over a slice, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum_by<T: Copy>(x: &[T], f: impl Fn(T) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f(value);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0] + chunks.remainder().iter().map(|&value| f(value)).sum::<f32>()
}

/// Largest value of a slice, negative infinity if it is empty. NaN may be ignored.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    chunks.remainder().iter().chain(lanes.iter()).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// e^x within 2 units in the last place (relative error 1.2e-7): Cody-Waite reduction by ln 2, then a polynomial of degree 6. Below
/// -87.3 the result stays at about 1e-38 and above 88.7 at about 3e38.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts; the first has trailing zeros, so that its product with an exponent is exact
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // 1.5 * 2^23: adding it rounds to the nearest integer, which then stands in the low bits
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.7);
    let rounded = madd::<FMA>(x, LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = madd::<FMA>(n, -LN2_LOW, madd::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = madd::<FMA>(p, r, coefficient);
    }
    let p = madd::<FMA>(p * r, r, r) + 1.0;
    // 2^n in two factors, since n can be 128, one more than an exponent field can represent.
    let n = (rounded.to_bits() as i32) - (ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    p * power(half) * power(n - half)
}

/// The error function, absolute error below 4e-7: an odd rational function on [-4, 4], beyond which it is ±1 in float32.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let mut p = -2.726_142_3e-10;
    for coefficient in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_5e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = madd::<FMA>(p, x2, coefficient);
    }
    let mut q = -1.456_607_2e-5;
    for coefficient in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = madd::<FMA>(q, x2, coefficient);
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf in float64 by its Taylor series, summed until it does not change.
    pub(crate) fn erf_f64(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn exp_is_exact_to_two_units() {
        for i in -87_300..=88_500 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                assert!(((f64::from(got) - want) / want).abs() < 1.5e-7, "exp({x}) = {got}, not {want}");
            }
        }
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(-1e9) < 2e-38 && exp::<true>(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn erf_is_close() {
        for i in -4500..=4500 {
            let x = i as f32 / 1000.0;
            let want = erf_f64(f64::from(x));
            for got in [erf::<true>(x), erf::<false>(x)] {
                assert!((f64::from(got) - want).abs() < 4e-7, "erf({x}) = {got}, not {want}");
            }
        }
    }

    #[test]
    fn sums_and_maxima_cover_the_remainder() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum_by(&x, |v| v), (n * n.max(1) - n) as f32 / 2.0);
            assert_eq!(max(&x), if n == 0 { f32::NEG_INFINITY } else { (n - 1) as f32 });
        }
    }
}
