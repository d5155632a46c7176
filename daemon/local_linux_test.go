package daemon

import (
	"os"
	"path/filepath"
	"testing"
)

// A process of another user that finds its way to the socket is not answered.
func TestLocalAPIRefusesAnotherUsersProcess(t *testing.T) {
	socket, _ := runLocal(t, &fakeLaptop{}, os.Geteuid())
	cmd := asNobody(t, "unix", socket)
	// Only the peer's credentials stand in its way.
	for _, path := range []string{filepath.Dir(filepath.Dir(socket)), filepath.Dir(socket), socket} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("child: %v\n%s", err, out)
	}
}
