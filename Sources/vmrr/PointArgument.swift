import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

/// A point of a trace: `TRACE@N`, `TRACE@N+K`, `TRACE@mark:NAME`, or `TRACE` alone for its end.
struct PointArgument: ExpressibleByArgument {
    var path: String
    /// A position or an exit; nil for the end.
    private var place: String?

    /// An at sign belongs to the file's name unless a point follows it.
    init(argument: String) {
        path = argument
        guard let at = argument.lastIndex(of: "@") else { return }
        let text = String(argument[argument.index(after: at)...])
        guard Position(text) != nil || ExitArgument(argument: text) != nil else { return }
        path = String(argument[..<at])
        place = text
    }

    /// A timeline of the trace, with its devices where they can be run again.
    func timeline(_ engine: EngineOption) throws -> Timeline {
        let reader = try TraceReader(path: path)
        return try Timeline(
            reader: reader, host: engine.open(for: reader.description()), withDevices: reader.canReplayDevices())
    }

    /// Moves there.
    func go(_ timeline: Timeline) throws {
        guard let place else { return try timeline.seekToEnd() }
        try timeline.seek(to: parsePosition(place, option: "the point", in: timeline.reader))
    }
}

/// Stops a timeline when the user asks for it.
func watched<T>(_ timelines: Timeline..., body: () throws -> T) throws -> T {
    let stoppers = timelines.map(\.stopper)
    let watch = SignalWatch { for stop in stoppers { stop() } }
    return try withExtendedLifetime(watch) { try body() }
}
