package supervisor

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/cloud-cup/cloud-cup/config"
	"github.com/cloud-cup/cloud-cup/control"
	"github.com/cloud-cup/cloud-cup/route"
)

// serveRoutes lists the routes of the configuration in force, or, with the
// parameter match, the one that takes the requests for a URL.
func (m *Master) serveRoutes(w http.ResponseWriter, r *http.Request) {
	routes := m.generation().cfg.Routes
	if r.URL.Query().Has("match") {
		i, err := matching(routes, r.URL.Query().Get("match"))
		if err != nil {
			refuse(w, err)
			return
		}
		routes = routes[i : i+1]
	}
	list := make([]control.RouteStatus, 0, len(routes))
	for i := range routes {
		list = append(list, routeStatus(&routes[i]))
	}
	answer(w, http.StatusOK, list)
}

func routeStatus(r *config.Route) control.RouteStatus {
	s := control.RouteStatus{Pattern: r.Pattern, Strategy: r.Strategy}
	for i := range r.Backends {
		s.Backends = append(s.Backends, r.Backends[i].Host)
	}
	return s
}

// matching is the index of the route that takes requests for a target, by the
// rules of workers: a URL, a host with a path, or a path for no host that any
// route names.
func matching(routes []config.Route, target string) (int, error) {
	text := target
	if !strings.HasPrefix(text, "http://") && !strings.HasPrefix(text, "https://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return 0, badRequest("match: %q is neither a URL nor a path", target)
	}
	entries := make([]route.Entry[int], 0, len(routes))
	for i := range routes {
		entries = append(entries, route.Entry[int]{Pattern: routes[i].Pattern, Value: i})
	}
	table, err := route.Build(entries)
	if err != nil {
		return 0, err
	}
	i, ok := table.Lookup([]byte(u.Host), []byte(u.EscapedPath()))
	if !ok {
		return 0, &apiError{http.StatusNotFound, "no route takes it"}
	}
	return i, nil
}
