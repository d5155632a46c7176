package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/relay/wire"
)

// requestAccess asks a node to write down that the person wants to be let in. A
// node that lets them in as it is says so.
func (c *clusterAccess) requestAccess(ctx context.Context, length time.Duration, reason string) (AccessRequestResult, error) {
	none := AccessRequestResult{}
	request, err := c.signAccessRequest(length, reason)
	if err != nil {
		return none, err
	}
	c.mu.Lock()
	open := c.edge != nil
	c.mu.Unlock()
	if open { // the node would have cut it
		return AccessRequestResult{Admitted: true}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, edgeTimeout)
	defer cancel()
	sessions := c.m.up()
	if len(sessions) == 0 {
		return none, NewLocalError(KindUnreachable, "see the daemon's log", "no relay of the network can be used")
	}
	for _, s := range sessions {
		var ready EdgeReady
		ready, err = s.RequestAccess(ctx, c.name, request)
		if err == nil {
			// What the relay says proves nothing: the edge is made as always.
			s.CloseEdge(ctx, ready.ID, wire.ReasonReplaced)
			if _, err = c.ensure(ctx); err == nil {
				return AccessRequestResult{Admitted: true}, nil
			}
		}
		if refused, ok := errors.AsType[*RefusedError](err); ok && auth.Reason(refused.Reason) == auth.ReasonRequested {
			c.m.log.Info("access requested", "cluster", c.name, "relay", s.relay.URL)
			return AccessRequestResult{Detail: printable(refused.Detail)}, nil
		}
		if isRefused(err) && AsLocalError(err).Kind == KindDenied {
			break // another relay would pass on the same answer
		}
	}
	if e := AsLocalError(err); e.Kind == KindDenied {
		return none, NewLocalError(KindDenied, "ask an opener or an administrator of the cluster yourself", "the request was not written down: %v", err)
	}
	return none, err
}

func (c *clusterAccess) signAccessRequest(length time.Duration, reason string) ([]byte, error) {
	if _, err := c.m.liveGrant(); err != nil {
		return nil, err
	}
	if c.current().Removed {
		return nil, NewLocalError(KindUnknownCluster, "", "cluster %s was removed from the network", c.name)
	}
	r := auth.AccessRequest{Issued: wallClock().Add(c.m.clockOffset()), For: length, Reason: reason}
	r, err := auth.SignAccessRequest(c.m.id, c.name, r, c.m.login)
	if err != nil {
		return nil, NewLocalError(KindUsage, "", "%v", err)
	}
	return r.Append(nil), nil
}
