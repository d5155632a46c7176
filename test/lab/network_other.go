//go:build !linux

package lab

import (
	"context"
	"errors"
	"fmt"
)

var errNoNamespaces = fmt.Errorf("network namespaces need Linux: %w", errors.ErrUnsupported)

// NewNetwork needs Linux.
func (l *Lab) NewNetwork(context.Context) (*Network, error) { return nil, errNoNamespaces }

// NewBridge needs Linux.
func (l *Lab) NewBridge(context.Context) (*Bridge, error) { return nil, errNoNamespaces }

// Isolate needs Linux.
func (b *Bridge) Isolate(context.Context, bool) error { return errNoNamespaces }
