package daemon

import (
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// A hostile relay may offer a grant again whose logout it passed on: its older
// statement is live for up to an hour.
func TestLogoutIsRemembered(t *testing.T) {
	a := newAdmission()
	k, now := key.NewLogin().Public(), time.Now()
	if a.loggedOut(k, now) {
		t.Error("a login that never ended is logged out")
	}
	a.logout(k, now)
	a.logout(k, now.Add(-time.Minute)) // an older logout changes nothing
	for age, want := range map[time.Duration]bool{-time.Hour: true, -time.Minute: true, 0: true, time.Millisecond: false} {
		if got := a.loggedOut(k, now.Add(age)); got != want {
			t.Errorf("a statement %v after the logout: logged out %v, want %v", age, got, want)
		}
	}
	a.logout(key.NewLogin().Public(), now.Add(3*time.Hour))
	if a.loggedOut(k, now) {
		t.Error("a logout whose statements are all over is still kept")
	}
}
