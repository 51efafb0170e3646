import Foundation
import Testing

/// A guest as the command line names it.
struct Guest: CustomTestStringConvertible, Sendable {
    var name: String
    var arguments: [String]
    var testDescription: String { name }

    static func builtIn(_ name: String, _ append: String = "") -> Guest {
        Guest(name: name, arguments: ["--guest", name] + (append.isEmpty ? [] : ["--append", append]))
    }

    static func flat(_ path: String, at address: String = "0x7c00") -> Guest {
        Guest(name: "flat", arguments: ["--flat", "\(path)@\(address)"])
    }

    /// `echo` with a person who types.
    static func echo(in folder: Folder = .current) throws -> Guest {
        let script = try folder.file("typed.txt", text: """
            # What a person types.
            expect "ends" "hello\\r"
            +20ms "second line\\x08\\x08ne\\r"
            +20ms "quit\\r"

            """)
        return Guest(name: "echo", arguments: ["--guest", "echo", "--serial", "script:\(script)"])
    }
}

/// A trace and what `record --json` said about it.
struct Recorded {
    var path: String
    var output: Output
    var report: JSON { output.json }
    /// What the guest printed.
    var console: String { output.errors }
    var status: Int32 { output.status }
    var digests: [String?] { [report["state_digest"].string, report["memory_digest"].string] }
    var exits: Int { report["exits"].int ?? -1 }
    var info: JSON { get throws { try Vmrr.run(["info", path, "--json"]).json } }
}

/// Records `guest` into the test's folder.
func record(
    _ guest: Guest, as name: String? = nil, _ more: [String] = [], deadline: Double = 60, around: [String] = [],
    signals: [Signal] = [], sourceLocation: SourceLocation = #_sourceLocation
) throws -> Recorded {
    let path = Folder.current("\(name ?? guest.name).vmrr")
    // The guest's own deadline ends it also where the test itself is killed.
    var arguments = ["record"] + guest.arguments + ["-o", path, "--json"] + more
    if !more.contains("--deadline") { arguments += ["--deadline", "\(Int(deadline))s"] }
    let output = try Vmrr.run(
        arguments, deadline: deadline + 10, around: around, signals: signals, sourceLocation: sourceLocation)
    return Recorded(path: path, output: output)
}

/// Replays `trace` so often, and expects its end each time: the same status, exits and digests.
func replaysTheSame(
    _ trace: Recorded, times: Int = 1, status: Int32? = nil, engine: String? = nil, sourceLocation: SourceLocation = #_sourceLocation
) throws {
    for _ in 0..<times {
        let output = try replay(trace.path, engine.map { ["--engine", $0] } ?? [], sourceLocation: sourceLocation)
        let report = output.json
        #expect(output.status == status ?? trace.status, "\(output)", sourceLocation: sourceLocation)
        #expect(report["diverged"].isNull, "\(output)", sourceLocation: sourceLocation)
        #expect(report["exits"].int == trace.exits, "\(output)", sourceLocation: sourceLocation)
        let digests = [report["state_digest"].string, report["memory_digest"].string]
        #expect(digests == trace.digests && !digests.contains(nil), "\(output)", sourceLocation: sourceLocation)
    }
}

/// Replays all that a recording without an end committed: the trace opens, and the replay goes from its oldest
/// checkpoint to its last exit. Returns how many exits that is.
func replaysToItsLastExit(
    _ path: String, ended: String, sourceLocation: SourceLocation = #_sourceLocation
) throws -> Int {
    let info = try Vmrr.run(["info", path, "--json"], sourceLocation: sourceLocation)
    try #require(info.status == 0, "\(info)", sourceLocation: sourceLocation)
    #expect(info.json["ended"].string == ended, "\(info)", sourceLocation: sourceLocation)
    let output = try replay(path, sourceLocation: sourceLocation)
    #expect(output.status == 0, "\(output)", sourceLocation: sourceLocation)
    #expect(output.json["diverged"].isNull, "\(output)", sourceLocation: sourceLocation)
    let oldest = try #require(info.json["oldest_checkpoint"].int, sourceLocation: sourceLocation)
    let last = try #require(info.json["first_exit"].int) + (try #require(info.json["exits"].int))
    #expect(output.json["exits"].int == last - oldest, "\(output)", sourceLocation: sourceLocation)
    return last - oldest
}

func replay(_ path: String, _ more: [String] = [], sourceLocation: SourceLocation = #_sourceLocation) throws -> Output {
    // Landing between exits takes several times the recording's time.
    try Vmrr.run(["replay", path, "--json"] + more, deadline: Sizes.isLong ? 300 : 90, sourceLocation: sourceLocation)
}
