//go:build !linux

package lab

import (
	"context"
	"fmt"

	"errors"
)

// NewNetwork needs Linux.
func (l *Lab) NewNetwork(context.Context) (*Network, error) {
	return nil, fmt.Errorf("network namespaces need Linux: %w", errors.ErrUnsupported)
}
