package control

// RouteStatus is one route of the configuration in force: an element of the
// answer to GET /v1/routes.
type RouteStatus struct {
	Pattern  string   `json:"pattern"`
	Strategy string   `json:"strategy"`
	Backends []string `json:"backends"` // hosts, in the order of the file
}

// Changes are the differences between two configurations.
type Changes struct {
	Added   int `json:"routes_added"`
	Removed int `json:"routes_removed"`
	Changed int `json:"routes_changed"`
	// Routes are the first of them, each behind "+", "-" or "~".
	Routes []string `json:"routes"`
	// Settings are the keys of the top level that changed, and "certificates"
	// if the content of files did that are named somewhere. Where routes take
	// a value from there, they count as changed, too.
	Settings []string `json:"settings"`
}
