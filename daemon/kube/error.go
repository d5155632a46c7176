package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What errors.Is finds in an *Error.
var (
	ErrUnauthorized = errors.New("unauthorized")
	ErrForbidden    = errors.New("forbidden")
	ErrNotFound     = errors.New("not found")
	ErrConflict     = errors.New("conflict")
	ErrGone         = errors.New("gone")
	ErrUnreachable  = errors.New("API server unreachable")
)

// Error is a request that the API server refused, or that did not reach it.
type Error struct {
	Code    int    // of HTTP; 0: there was no answer
	Message string // the API server's words, as it sent them
	Err     error  // why there was no answer

	request    request
	namespace  string
	retryAfter time.Duration
}

func (c *Client) fault(r request, err error) *Error {
	return &Error{request: r, namespace: c.pod.Namespace, Err: err}
}

// what names the request's object.
func (e *Error) what() string {
	r := e.request.resource
	s := r.Plural
	if r.Group != "" {
		s += "." + r.Group
	}
	if e.request.subresource != "" {
		s += "/" + e.request.subresource
	}
	if name := e.request.name + e.request.only; name != "" {
		s += " " + name
	}
	if !r.Cluster {
		s += " in namespace " + e.namespace
	}
	return s
}

func (e *Error) Error() string {
	doing := e.request.verb + " " + e.what() + ": "
	switch {
	case e.Code == 0 && errors.Is(e.Err, context.DeadlineExceeded):
		return doing + "no answer from the API server in time"
	case e.Code == 0:
		return doing + e.Err.Error()
	case e.Code == http.StatusForbidden && !e.permanent():
		return doing + "the pod's service account has no right to it"
	case e.Code == http.StatusUnauthorized:
		return doing + "the API server does not accept the service account's token"
	case e.Code == http.StatusNotFound && e.request.name == "":
		return doing + "the API server knows no such resource"
	case e.Message != "":
		return doing + fmt.Sprintf("%s (HTTP status %d)", e.Message, e.Code)
	}
	return doing + fmt.Sprintf("HTTP status %d %s", e.Code, http.StatusText(e.Code))
}

// permanent reports whether the same object would be refused another time too,
// whereas others may be taken. A right that is missing may come, and a 403 that
// says nothing is taken for that.
func (e *Error) permanent() bool {
	switch e.Code {
	case http.StatusUnauthorized, http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	case http.StatusForbidden: // admission's, not RBAC's
		return !strings.Contains(e.Message, " cannot ") && (strings.Contains(e.Message, "exceeded quota") || strings.Contains(e.Message, "denied"))
	}
	return e.Code >= 400 && e.Code < 500
}

// Unwrap returns why there was no answer.
func (e *Error) Unwrap() error { return e.Err }

// Is matches the sentinels.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Code == http.StatusUnauthorized
	case ErrForbidden:
		return e.Code == http.StatusForbidden
	case ErrNotFound:
		return e.Code == http.StatusNotFound
	case ErrConflict:
		return e.Code == http.StatusConflict
	case ErrGone:
		return e.Code == http.StatusGone
	case ErrUnreachable:
		return e.Code == 0
	}
	return false
}

// Hint says what to do.
func (e *Error) Hint() string {
	r := e.request.resource
	switch e.Code {
	case 0:
		return "see that the API server runs and that the pod may reach it (NetworkPolicy)"
	case http.StatusForbidden:
		if e.permanent() {
			return "see what refuses it: a ResourceQuota, or an admission policy"
		}
		role := "the Role of the service account in namespace " + e.namespace
		if r.Cluster {
			role = "the ClusterRole of the service account"
		}
		return "add to " + role + " the rule " + e.rule() + "; the chart renders it, so `helm upgrade` mends it too"
	case http.StatusUnauthorized:
		return "see that the service account was not deleted and that the clocks of pod and API server agree; then restart the pod"
	case http.StatusNotFound:
		if e.request.name == "" {
			return "install the CustomResourceDefinition " + r.Plural + "." + r.Group + ", which the chart renders"
		}
	}
	return "see the API server's log"
}

// rule is what RBAC lacks, as it stands in a Role. What is followed is got,
// listed and watched.
func (e *Error) rule() string {
	r, verbs := e.request, []string{e.request.verb}
	switch r.verb {
	case "list", "watch":
		verbs = []string{"get", "list", "watch"}
	case "create":
		verbs = []string{"create", "patch"}
	}
	resource := r.resource.Plural
	if r.subresource != "" {
		resource += "/" + r.subresource
	}
	names := ""
	if r.only != "" {
		names = ", resourceNames: [" + r.only + "]"
	}
	return fmt.Sprintf("{apiGroups: [%q], resources: [%s]%s, verbs: [%s]}", r.resource.Group, resource, names, strings.Join(verbs, ", "))
}

// retryAfter reads the seconds of a header, up to a minute.
func retryAfter(s string) time.Duration {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, 60)) * time.Second
}
