package main

import "math"

// CartPole-v1 and its policy, bit-identical with examples/cartpole/physics.py, which explains why. The
// conversions keep the compiler from fusing a product and a sum into one rounding.

const (
	longest    = 500 // steps
	gravity    = 9.8
	force      = 10.0
	seconds    = 0.02
	poleMass   = 0.1
	totalMass  = 1.1
	halfLength = 0.5
	farthest   = 2.4                 // metres
	steepest   = 0.20943951023931953 // 12 degrees
)

// Indexes of a state.
const (
	position = iota
	speed
	angle // of the pole
	turning
)

type state [4]float64

// series returns the sum of terms[i] * y^i.
func series(y float64, terms ...float64) float64 {
	sum := terms[len(terms)-1]
	for i := len(terms) - 2; i >= 0; i-- {
		sum = terms[i] + float64(y*sum)
	}
	return sum
}

func sine(x float64) float64 {
	return x * series(x*x, 1, -1./6, 1./120, -1./5040, 1./362880, -1./39916800)
}

func cosine(x float64) float64 {
	return series(x*x, 1, -1./2, 1./24, -1./720, 1./40320, -1./3628800, 1./479001600)
}

// step returns the state after 0.02 s in which the cart is pushed to the right (1) or to the left (0).
func step(s state, action int) state {
	push := -force
	if action == 1 {
		push = force
	}
	const poleMoment = poleMass * halfLength
	sin, cos, turns := sine(s[angle]), cosine(s[angle]), s[turning]
	push = (push + float64(poleMoment*float64(turns*turns)*sin)) / totalMass
	inertia := halfLength * (4./3 - float64(poleMass*float64(cos*cos))/totalMass)
	turned := (float64(gravity*sin) - float64(cos*push)) / inertia
	moved := push - float64(poleMoment*turned*cos)/totalMass
	return state{
		s[position] + float64(seconds*s[speed]),
		s[speed] + float64(seconds*moved),
		s[angle] + float64(seconds*s[turning]),
		s[turning] + float64(seconds*turned),
	}
}

// isOver reports whether the cart has left the track or the pole has fallen.
func isOver(s state) bool {
	return math.Abs(s[position]) > farthest || math.Abs(s[angle]) > steepest
}

// vary returns the weights of one episode: the published policy, varied by its noise.
func vary(mean, spread, noise [4]float64) [4]float64 {
	var weights [4]float64
	for i := range weights {
		weights[i] = mean[i] + float64(spread[i]*noise[i])
	}
	return weights
}

// act returns 1 to push the cart to the right, 0 to push it to the left.
func act(weights [4]float64, s state) int {
	lean := 0.
	for i, weight := range weights {
		lean += float64(weight * s[i])
	}
	if lean > 0 {
		return 1
	}
	return 0
}
