import Foundation
import Testing
import VMCore

@testable import Trace

/// SplitMix64: the tests' only randomness. Each test prints its seed in what it expects.
struct Seeded: RandomNumberGenerator {
    var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
    mutating func below(_ n: Int) -> Int { Int(next() % UInt64(n)) }
    mutating func bytes(_ n: Int) -> [UInt8] { (0..<n).map { _ in UInt8(truncatingIfNeeded: next()) } }
}

/// A folder that goes away with the test.
final class Folder: Sendable {
    let path: String
    init() {
        path = NSTemporaryDirectory() + "vmrr-trace-\(UUID().uuidString)"
        try! FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }
    func callAsFunction(_ name: String) -> String { path + "/" + name }
}

/// An event as a test states it.
struct Event: Equatable {
    var identity: EventIdentity
    var value: UInt64 = 0
    var payload: [UInt8]?
    var anchor: Anchor?

    func append(to writer: TraceWriter) throws {
        if let payload {
            try payload.withUnsafeBytes { try writer.append(identity, bytes: $0) }
        } else if let anchor {
            try writer.append(identity, anchor: anchor)
        } else {
            try writer.append(identity, value: value)
        }
    }

    init(_ identity: EventIdentity, value: UInt64 = 0, payload: [UInt8]? = nil, anchor: Anchor? = nil) {
        (self.identity, self.value, self.payload, self.anchor) = (identity, value, payload, anchor)
    }

    init(_ event: TraceEvent) {
        self.init(event.identity, value: event.value, payload: event.payload.map(Array.init), anchor: event.anchor)
    }

    static func read(_ port: UInt64, _ value: UInt64, size: UInt8 = 1) -> Event {
        Event(EventIdentity(kind: .portRead, size: size, address: port), value: value)
    }

    static func random(_ random: inout Seeded, identities: Int) -> Event {
        // The address decides the rest, so that there are as many identities as asked for.
        let address = UInt64(random.below(identities)) &* 0x1_0000_0001_0007
        var shape = Seeded(address)
        let kind = EventKind.allCases[shape.below(EventKind.allCases.count)]
        let identity = EventIdentity(
            kind: kind, size: [0, 1, 2, 4, 8][shape.below(5)], flags: UInt8(shape.below(3)),
            count: [1, 1, 7, .max][shape.below(4)], address: address)
        if kind.isAnchored {
            let anchor = Anchor(
                rip: 0xFFFF_8000_0000_0000 + random.next() % 0x1000, registers: random.next(), memory: random.next(),
                instructions: random.next() % 5000, elapsed: Nanoseconds(random.next() % 100_000),
                general: random.next())
            return Event(identity, anchor: random.below(2) == 0 ? anchor : anchor.brief)
        }
        if kind == .memoryWrite || identity.count == 7 {
            return Event(identity, payload: random.bytes(random.below(40)))
        }
        switch shape.below(4) {
        case 0: return Event(identity, value: random.next())
        case 1: return Event(identity, value: random.next() % 16)
        case 2: return Event(identity, value: 0 &- random.next() % 16)
        default: return Event(identity, value: .max)
        }
    }
}

@discardableResult
func record(
    _ events: [Event], at path: String, options: TraceWriterOptions = .init(overwrite: true), flushEvery: Int = .max
) throws -> Int {
    let writer = try TraceWriter(path: path, metadata: ["name": "test"], options: options)
    for (index, event) in events.enumerated() {
        try event.append(to: writer)
        if index % flushEvery == flushEvery - 1 { try writer.flush() }
    }
    try writer.finish(meta: ["ending": "done"])
    return try FileManager.default.attributesOfItem(atPath: path)[.size] as! Int
}

func readAll(_ path: String) throws -> [Event] {
    let reader = try TraceReader(path: path)
    var cursor = reader.cursor()
    var events: [Event] = []
    var exit = reader.firstExit
    while let event = try cursor.next() {
        if event.identity.kind.isExit { exit = exit.next }
        if event.exit != exit || event.sequence != UInt64(events.count) {
            Issue.record("event \(events.count) misplaced")
        }
        events.append(Event(event))
    }
    #expect(exit == reader.lastExit && UInt64(events.count) == reader.events)
    return events
}

/// Reads whatever the file has; returns how the reader judged it. Anything but a `TraceError` propagates.
@discardableResult
func readEverything(_ path: String) throws -> TraceError? {
    do {
        let reader = try TraceReader(path: path)
        _ = try reader.notes()
        _ = try reader.extents()
        _ = try reader.meta("ending", as: String.self)
        for checkpoint in reader.checkpoints {
            _ = try reader.state(of: checkpoint.id)
            try reader.loadPages(checkpoint.id, pageLimit: 4096) { _, _ in }
        }
        var cursor = reader.cursor()
        while try cursor.next() != nil {}
        try cursor.seek(to: ExitNumber(reader.lastExit.rawValue / 2))
        return nil
    } catch let error as TraceError {
        #expect(!error.description.isEmpty)
        return error
    }
}

/// A helper process that records until it is killed.
struct Helper {
    let process = Process()
    let output = Pipe()

    init(_ arguments: [String], environment: [String: String] = [:]) throws {
        // The helper stands beside the test bundle.
        let folder = CommandLine.arguments[0].split(separator: "/").contains(where: { $0.hasSuffix(".xctest") })
            ? (CommandLine.arguments[0] as NSString).deletingLastPathComponent
            : Bundle.main.bundlePath
        process.executableURL = URL(fileURLWithPath: folder + "/TraceHelper")
        process.arguments = arguments
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        process.standardOutput = output
        try process.run()
    }

    func waitUntilRecording() { _ = output.fileHandleForReading.availableData }

    func kill() {
        Foundation.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    func finish() -> (status: Int32, output: String) {
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: data, as: UTF8.self))
    }

    /// Checks that the events in `path` are what the helper writes, from the first on; returns how many they are.
    static func verifyPrefix(_ path: String) throws -> Int {
        let reader = try TraceReader(path: path)
        var cursor = reader.cursor()
        var count: UInt64 = 0
        var wrong = 0
        while let event = try cursor.next() {
            if count % 1000 == 999 {
                if event.identity.address != count || event.payload?.count != Int(count % 5000) { wrong += 1 }
            } else if event.identity.address != count % 7 || (event.value != count * 3 && count % 7 != 6) {
                wrong += 1
            }
            count += 1
        }
        #expect(wrong == 0)
        for checkpoint in reader.checkpoints where checkpoint.exit <= reader.lastExit {
            #expect(try reader.state(of: checkpoint.id).devices.count == 9)
            try reader.loadPages(checkpoint.id, pageLimit: 64) { _, _ in }
        }
        return Int(count)
    }
}

/// Makes a file of just these bytes.
func put(_ bytes: Data, at path: String) throws {
    try bytes.write(to: URL(fileURLWithPath: path))
}
