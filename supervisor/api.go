package supervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
)

// Bounds of what is sent over the admin socket.
const (
	configBytesMax = 16 << 20
	askedBytesMax  = 64 << 10 // of JSON
)

// apiError is a request that the API cannot serve, with the status that says
// so.
type apiError struct {
	status int
	text   string
}

// Error is what the answer says.
func (e *apiError) Error() string { return e.text }

func badRequest(format string, args ...any) error {
	return &apiError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// endpoint is one thing that the API does.
type endpoint struct {
	method string
	path   string   // a pattern of http.ServeMux
	query  []string // the parameters that it takes
	serve  func(w http.ResponseWriter, r *http.Request)
}

// read is an endpoint that answers with what get returns.
func read[T any](path string, get func() T) endpoint {
	return endpoint{http.MethodGet, path, nil, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, get())
	}}
}

// endpoints are the whole API.
func (m *Master) endpoints() []endpoint {
	return []endpoint{
		read("/v1/status", m.Status),
		read("/v1/version", func() control.VersionInfo { return control.VersionInfo{Version: m.options.Version} }),
		read("/v1/workers", func() []control.WorkerStatus { return m.Status().Workers }),
		read("/v1/backends", func() []control.BackendStatus { return m.Status().Backends }),
		read("/v1/certs", m.Certificates),
		read("/v1/stats", m.Stats),
		read("/v1/io", m.IO),
		read("/v1/errors", m.Errors),
		{http.MethodGet, "/metrics", nil, m.scraper.ServeHTTP},
		{http.MethodGet, "/readyz", nil, m.answerReady},
		{http.MethodPatch, "/v1/backends/{host...}", nil, m.serveBackend},
		{http.MethodGet, "/v1/routes", []string{"match"}, m.serveRoutes},
		{http.MethodGet, "/v1/config", nil, m.serveConfig},
		{http.MethodPost, "/v1/config", []string{"name", "dry_run", "save"}, m.serveApply},
		{http.MethodPost, "/v1/reload", nil, m.serveReload},
		{http.MethodPost, "/v1/upgrade", nil, m.serveUpgrade},
		{http.MethodPost, "/v1/stop", []string{"now"}, m.serveStop},
	}
}

// adminHandler is the API. Whatever a request asks for wrongly is answered by
// JSON that says what is wrong.
func (m *Master) adminHandler() http.Handler {
	paths := map[string][]endpoint{}
	for _, e := range m.endpoints() {
		paths[e.path] = append(paths[e.path], e)
	}
	mux := http.NewServeMux()
	for path, list := range paths {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				m.answering.Add(1)
				defer m.answering.Add(-1)
			}
			dispatch(w, r, list)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, &apiError{http.StatusNotFound, fmt.Sprintf("there is no %s; there are %s",
			r.URL.Path, strings.Join(slices.Sorted(maps.Keys(paths)), ", "))})
	})
	return mux
}

// dispatch serves r by the endpoint of its path that has its method.
func dispatch(w http.ResponseWriter, r *http.Request, list []endpoint) {
	var methods []string
	for _, e := range list {
		methods = append(methods, e.method)
		if e.method != r.Method && (e.method != http.MethodGet || r.Method != http.MethodHead) {
			continue
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			refuse(w, badRequest("query: %v", err))
			return
		}
		for name, values := range query {
			switch {
			case !slices.Contains(e.query, name):
				refuse(w, badRequest("unknown parameter %q", name))
				return
			case len(values) > 1:
				refuse(w, badRequest("parameter %q stands twice", name))
				return
			}
		}
		e.serve(w, r)
		return
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	refuse(w, &apiError{http.StatusMethodNotAllowed, fmt.Sprintf("%s is for %s, not %s", r.URL.Path, strings.Join(methods, " and "), r.Method)})
}

// onlyForPeers serves those who may control the master, whatever the socket's
// mode says.
func (a *adminServer) onlyForPeers(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := peerFrom(r.Context())
		if !a.mayControl(who) {
			log.Warn("admin socket", "denied_uid", who.uid)
			refuse(w, &apiError{http.StatusForbidden, fmt.Sprintf("user %d may not control this cloud-cup", who.uid)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// flag is a parameter that is "1" or "0".
func flag(r *http.Request, name string) (bool, error) {
	switch text := r.URL.Query().Get(name); text {
	case "1":
		return true, nil
	case "0", "":
		return false, nil
	default:
		return false, badRequest("parameter %s is %q: want 1 or 0", name, text)
	}
}

// body reads all of a request's body.
func body(w http.ResponseWriter, r *http.Request, bytesMax int64) ([]byte, error) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bytesMax))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &apiError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than %d bytes", bytesMax)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &apiError{http.StatusRequestTimeout, "the request did not arrive in time"}
	case err != nil:
		return nil, badRequest("request: %v", err)
	}
	return text, nil
}

// asked decodes the JSON of a request, all of which must be known.
func asked(w http.ResponseWriter, r *http.Request, into any) error {
	text, err := body(w, r, askedBytesMax)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	switch err := decoder.Decode(into); {
	case err == io.EOF:
		return badRequest("request: it is empty")
	case err != nil:
		return badRequest("request: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := decoder.Token(); err != io.EOF {
		return badRequest("request: something follows the JSON")
	}
	return nil
}

func (m *Master) serveConfig(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	// The client sees a text that is cut short by itself.
	_, _ = w.Write(m.generation().text)
}

// answerReady tells load balancers and the like whether to send requests here.
func (m *Master) answerReady(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := m.unready()
	if text != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else {
		text = "ready"
	}
	// A client that went away has its answer.
	_, _ = io.WriteString(w, text+"\n")
}

func (m *Master) serveReload(w http.ResponseWriter, r *http.Request) {
	applied, err := m.Reload()
	m.outcome(w, r, "reload", applied, err)
}

func (m *Master) serveApply(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	if name == "" {
		name = "config"
	}
	how, err := wayOf(r)
	var text []byte
	if err == nil {
		text, err = body(w, r, configBytesMax)
	}
	var applied *control.Applied
	if err == nil {
		applied, err = m.ApplyText(name, text, how)
	}
	m.outcome(w, r, "apply", applied, err)
}

// wayOf is what a request asks to do with its configuration.
func wayOf(r *http.Request) (ways, error) {
	dry, dryErr := flag(r, "dry_run")
	save, saveErr := flag(r, "save")
	switch err := errors.Join(dryErr, saveErr); {
	case err != nil:
		return applyNow, err
	case dry && save:
		return applyNow, badRequest("dry_run and save exclude each other")
	case dry:
		return applyDry, nil
	case save:
		return applySave, nil
	}
	return applyNow, nil
}

// serveUpgrade answers when the new master serves, or when there is none.
func (m *Master) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	uid := peerFrom(r.Context()).uid
	m.log.Info("admin socket", "does", "upgrade", "uid", uid, "program", m.program)
	upgraded, err := m.Upgrade()
	if err != nil {
		m.log.Warn("admin socket", "refused", "upgrade", "uid", uid, "err", err)
		refuse(w, err)
		return
	}
	answer(w, http.StatusOK, upgraded)
}

// serveStop does what signals do, once the answer is on its way.
func (m *Master) serveStop(w http.ResponseWriter, r *http.Request) {
	now, err := flag(r, "now")
	if err != nil {
		refuse(w, err)
		return
	}
	timeouts := m.generation().cfg.Timeouts
	m.log.Info("admin socket", "did", "stop", "uid", peerFrom(r.Context()).uid, "now", now)
	text := encode(control.Stopping{
		PID: os.Getpid(), DrainDelay: timeouts.DrainDelay.Seconds(), DrainDeadline: timeouts.Drain.Seconds(), Now: now,
	})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	// The only errors are those of a client that went away.
	_, _ = w.Write(text)
	_ = http.NewResponseController(w).Flush()
	m.signal(syscall.SIGTERM)
	if now {
		m.signal(syscall.SIGTERM)
	}
}

// outcome answers a request for another configuration, and logs who asked.
func (m *Master) outcome(w http.ResponseWriter, r *http.Request, what string, applied *control.Applied, err error) {
	uid := peerFrom(r.Context()).uid
	if err != nil {
		m.log.Warn("admin socket", "refused", what, "uid", uid, "err", err)
		refuse(w, err)
		return
	}
	if !applied.DryRun {
		m.log.Info("admin socket", "did", what, "uid", uid, "from_generation", applied.Before, "generation", applied.Generation,
			"saved", applied.Saved, "changed", summary(applied.Changes))
	}
	answer(w, http.StatusOK, applied)
}

// refuse answers with an error. One that says nothing else means that the state
// of things does not allow it.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusConflict
	var wrong *apiError
	var invalid config.Errors
	switch {
	case errors.As(err, &wrong):
		status = wrong.status
	case errors.As(err, &invalid):
		status = control.StatusInvalid
	}
	answer(w, status, control.Failure{Error: err.Error()})
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The only errors are those of a client that went away.
	_, _ = w.Write(encode(v))
}

// encode is v as JSON that people can read.
func encode(v any) []byte {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // types of package control can be encoded
	}
	return append(text, '\n')
}
