package lightningstore

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

// pages yields the items of all pages of a list. load returns the items of a page and the token of the next one, and
// turn makes the request one for the page of a token. An error ends it.
func pages[R proto.Message, T any](
	first R, load func(R) (items []T, next string, err error), turn func(R, string),
) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		request := proto.CloneOf(first) // the caller's does not change, and can be iterated again
		for {
			items, next, err := load(request)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			turn(request, next)
		}
	}
}
