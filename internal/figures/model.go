package figures

import (
	"math"

	"spillway/internal/bench"
)

// Cost is how long a request takes: a fixed time, and the rest by its size.
type Cost struct {
	FixedS      float64
	BytesPerSec float64
}

// FitCost fits the median times of requests of several sizes by least squares of their relative errors. Without ok there are too few sizes, or larger ones
// take no longer.
func FitCost(rows []bench.Row) (c Cost, ok bool) {
	var n, sx, sy, sxx, sxy float64 // weighted
	for _, row := range rows {
		x, y := float64(row.CaseBytes), row.MedianUs/1e6
		if x <= 0 || y <= 0 {
			continue
		}
		w := 1 / (y * y)
		n, sx, sy, sxx, sxy = n+w, sx+w*x, sy+w*y, sxx+w*x*x, sxy+w*x*y
	}
	slope := (n*sxy - sx*sy) / (n*sxx - sx*sx)
	if !(slope > 0) || math.IsInf(slope, 0) {
		return Cost{}, false
	}
	return Cost{FixedS: (sy - slope*sx) / n, BytesPerSec: 1 / slope}, true
}

// Crossover is the size from which a way pays that costs more at first and then is faster: more / (1/slow - 1/fast), speeds in bytes per second. Without ok
// it never pays. The extra time of the seed's is its handover.
func Crossover(extraS, slow, fast float64) (sizeBytes float64, ok bool) {
	if extraS <= 0 {
		return 0, fast >= slow
	}
	gain := 1/slow - 1/fast
	if !(gain > 0) {
		return 0, false
	}
	return extraS / gain, true
}

// measuredCrossover is the size from which an arm is at least as fast as another at every larger size that was measured, by interpolation between the
// logarithms of the sizes.
func measuredCrossover(rows []bench.Row, arm, base string) (sizeBytes float64, ok bool) {
	var sizes, gains []float64
	for _, name := range cases(bySize(rows)) {
		a, okA := of(rows, arm, name)
		b, okB := of(rows, base, name)
		if okA && okB && rate(b).Median > 0 {
			sizes, gains = append(sizes, float64(a.CaseBytes)), append(gains, math.Log(rate(a).Median/rate(b).Median))
		}
	}
	last := len(gains) - 1
	if last < 0 || gains[last] < 0 {
		return 0, false
	}
	for last > 0 && gains[last-1] >= 0 {
		last--
	}
	if last == 0 {
		return sizes[0], true
	}
	part := -gains[last-1] / (gains[last] - gains[last-1])
	return math.Exp(math.Log(sizes[last-1]) + part*(math.Log(sizes[last])-math.Log(sizes[last-1]))), true
}

// Prediction is where offloading would pay on hardware that nothing was measured on.
type Prediction struct {
	LinkGbit  float64
	VMShare   float64 // assumed: what part of the host's bandwidth the VM reaches, where the link does not limit both
	HandoverS float64 // measured
	SizeBytes float64
	Pays      bool
}

// Links and shares of the predictions. The first share is what the seed measured at 3 MB: +71 % (section IV.B); the second is an assumption for a VM with
// vhost-net and segmentation offload.
var (
	predictedLinksGbit = []float64{10, 25, 100}
	predictedVMShares  = []float64{1 / 1.71, 0.85}
)

// Predict fills the model in for each link and share: the host sends with what was measured on this machine or with what the link carries, whichever is
// less, and the VM with a share of the former or with what the link carries.
func Predict(hostBytesPerSec float64, handoversS []float64) []Prediction {
	var all []Prediction
	for _, gbit := range predictedLinksGbit {
		link := gbit * 1e9 / 8
		for _, share := range predictedVMShares {
			for _, h := range handoversS {
				p := Prediction{LinkGbit: gbit, VMShare: share, HandoverS: h}
				p.SizeBytes, p.Pays = Crossover(h, min(link, share*hostBytesPerSec), min(link, hostBytesPerSec))
				all = append(all, p)
			}
		}
	}
	return all
}
