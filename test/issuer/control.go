package issuer

import (
	"encoding/json"
	"net/http"
)

// Control serves what a test in another process changes while the issuer runs:
// JSON bodies, 204 or 400 with the reason. Serve it where only the test reaches.
//
//	POST /control/users   a User; adds or replaces
//	POST /control/groups  {"user": NAME, "groups": [NAME…]}
//	POST /control/remove  {"user": NAME}
//	POST /control/rotate  {"withdrawOld": BOOL}
//	POST /control/signout {} ends every browser session
//	POST /control/switch  {"user": NAME} makes every browser session that of NAME
func (i *Issuer) Control() http.Handler {
	type order struct {
		User        string   `json:"user"`
		Groups      []string `json:"groups"`
		WithdrawOld bool     `json:"withdrawOld"`
	}
	mux := http.NewServeMux()
	handle(mux, "users", i.PutUser)
	handle(mux, "groups", func(o order) error { return i.SetGroups(o.User, o.Groups...) })
	handle(mux, "remove", func(o order) error { i.RemoveUser(o.User); return nil })
	handle(mux, "rotate", func(o order) error { return i.RotateKeys(o.WithdrawOld) })
	handle(mux, "signout", func(order) error { i.SignOut(); return nil })
	handle(mux, "switch", func(o order) error { i.SwitchSessions(o.User); return nil })
	return mux
}

func handle[T any](mux *http.ServeMux, name string, do func(T) error) {
	mux.HandleFunc("POST /control/"+name, func(w http.ResponseWriter, r *http.Request) {
		var v T
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		err := d.Decode(&v)
		if err == nil {
			err = do(v)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}
