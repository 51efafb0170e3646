import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

/// A point of a trace: `TRACE@N`, `TRACE@N+K`, or `TRACE` alone for its end.
struct PointArgument: ExpressibleByArgument {
    var path: String
    /// Nil for the end.
    var position: Position?

    /// An at sign belongs to the file's name unless a position follows it.
    init(argument: String) {
        path = argument
        guard let at = argument.lastIndex(of: "@"),
            let position = Position(String(argument[argument.index(after: at)...]))
        else { return }
        path = String(argument[..<at])
        self.position = position
    }

    /// A timeline of the trace, with its devices where they can be run again.
    func timeline(_ engine: EngineOption) throws -> Timeline {
        let reader = try TraceReader(path: path)
        return try Timeline(
            reader: reader, host: engine.open(for: reader.description()), withDevices: reader.canReplayDevices())
    }

    /// Moves there.
    func go(_ timeline: Timeline) throws {
        if let position { try timeline.seek(to: position) } else { try timeline.seekToEnd() }
    }
}

/// An exit or a position after one, as `--at` takes it.
func parsePosition(_ text: String, option: String) throws -> Position {
    guard let position = Position(text) else {
        throw UsageError("\(option) takes an exit such as 4711, or 4711+3, not '\(text)'")
    }
    return position
}

/// Stops a timeline when the user asks for it.
func watched<T>(_ timelines: Timeline..., body: () throws -> T) throws -> T {
    let stoppers = timelines.map(\.stopper)
    let watch = SignalWatch { for stop in stoppers { stop() } }
    return try withExtendedLifetime(watch) { try body() }
}
