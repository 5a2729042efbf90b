package media

import (
	"path"
	"strings"
)

// class tells files that change (manifests) from those that do not, once they exist (everything else).
type class int

const (
	segment class = iota
	manifest
)

// contentType returns the media type of a file name and its class. The table is fixed: the machine's mime.types must not change
// what a player is told.
func contentType(name string) (mediaType string, c class) {
	switch strings.ToLower(path.Ext(name)) {
	case ".mpd":
		return "application/dash+xml", manifest // ISO/IEC 23009-1, annex C
	case ".m3u8":
		return "application/vnd.apple.mpegurl", manifest // RFC 8216, section 10
	case ".json":
		return "application/json", manifest
	case ".m4s":
		return "video/iso.segment", segment // ISO/IEC 23009-1, annex C
	case ".mp4", ".m4v", ".cmfv":
		return "video/mp4", segment // RFC 4337
	case ".m4a", ".cmfa":
		return "audio/mp4", segment // RFC 4337
	case ".ts":
		return "video/mp2t", segment // RFC 3555
	case ".vtt":
		return "text/vtt; charset=utf-8", segment // W3C WebVTT
	case ".aac":
		return "audio/aac", segment
	case ".mp3":
		return "audio/mpeg", segment // RFC 3003
	default:
		return "application/octet-stream", segment
	}
}
