package daemon

import (
	"context"
	"log/slog"

	"tailscale.com/net/netmon"
	"tailscale.com/util/eventbus"
)

// watchLinks calls changed, until ctx is done, when this machine's addresses or
// default route change, and when it wakes from sleep (woke).
func watchLinks(ctx context.Context, log *slog.Logger, changed func(woke bool)) error {
	bus := eventbus.New()
	defer bus.Close()
	monitor, err := netmon.New(bus, func(format string, args ...any) {}) // its lines are chatter; what counts is the callback
	if err != nil {
		return err
	}
	unregister := monitor.RegisterChangeCallback(func(d *netmon.ChangeDelta) {
		if d.RebindLikelyRequired || d.TimeJumped() {
			log.Info("links changed", "woke", d.TimeJumped(), "default_route", d.DefaultRouteInterface)
			changed(d.TimeJumped())
		}
	})
	defer unregister()
	monitor.Start()
	<-ctx.Done()
	return monitor.Close()
}
