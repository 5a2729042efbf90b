package dataset

import (
	"math"
	"math/rand/v2"
)

// SizeSigma is the standard deviation of the natural logarithm of a segment's size. Encoders at a constant quality spread their
// segments about log-normally; 0.35 is a coefficient of variation of 0.36, so that 95 % lie between half the mean and twice the mean.
const SizeSigma = 0.35

// segmentSizes draws n sizes from a log-normal distribution and scales them, so that their sum is exactly total, whatever n is.
func segmentSizes(n int, total int64, random *rand.Rand) []int64 {
	weights := make([]float64, n)
	sum := 0.0
	for i := range weights {
		weights[i] = math.Exp(SizeSigma * random.NormFloat64())
		sum += weights[i]
	}
	sizes := make([]int64, n)
	rest := total
	for i, w := range weights {
		sizes[i] = int64(w / sum * float64(total))
		rest -= sizes[i]
	}
	for i := range rest { // what rounding down has left: less than a byte a segment
		sizes[i]++
	}
	return sizes
}
