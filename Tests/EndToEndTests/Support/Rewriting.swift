import Foundation
import Trace
import VMCore

/// A trace taken apart, to be changed and written again with digests that fit.
struct LooseTrace {
    struct Incomplete: Error {}

    var events: [TraceEvent] = []
    var description: TraceDescription
    var ending: TraceEnding?
    var cpu: [UInt8]
    var devices: Data
    var pages: [UInt64: [UInt8]] = [:]
    /// The checkpoints after the first, each complete.
    var later: [Checkpoint] = []

    struct Checkpoint {
        var exit: UInt64
        /// Events before it.
        var event: Int
        var cpu: [UInt8]
        var digests: CheckpointDigests
        var pages: [UInt64: [UInt8]] = [:]
    }

    init(_ path: String, withCheckpoints: Bool = false) throws {
        let reader = try TraceReader(path: path)
        var cursor = reader.cursor()
        while let event = try cursor.next() { events.append(event) }
        guard let description = try reader.meta(TraceDescription.key, as: TraceDescription.self),
            let checkpoint = reader.checkpoints.first
        else { throw Incomplete() }
        self.description = description
        ending = try reader.meta(TraceEnding.key, as: TraceEnding.self)
        let state = try reader.state(of: checkpoint.id)
        (cpu, devices) = ([UInt8](state.cpu), state.devices)
        try reader.loadPages(checkpoint.id, pageLimit: 1 << 20) { number, bytes in
            if let bytes { pages[number] = [UInt8](bytes) }
        }
        guard withCheckpoints else { return }
        for info in reader.checkpoints.dropFirst() {
            var next = Checkpoint(exit: info.exit.rawValue, event: Int(info.event),
                                  cpu: [UInt8](try reader.state(of: info.id).cpu), digests: info.digests)
            try reader.loadPages(info.id, pageLimit: 1 << 20) { number, bytes in
                if let bytes { next.pages[number] = [UInt8](bytes) }
            }
            later.append(next)
        }
    }

    func write(to path: String) throws {
        let writer = try TraceWriter(
            path: path, metadata: [TraceDescription.key: description], options: TraceWriterOptions(overwrite: true))
        let checkpoint = NewCheckpoint(exit: .start, cpu: Data(cpu), devices: devices, digests: CheckpointDigests())
        try writer.writeCheckpoint(checkpoint) { try Self.emit(pages, $0) }
        var waiting = later[...]
        for index in 0...events.count {
            while let next = waiting.first, next.event == index {
                try writer.writeCheckpoint(NewCheckpoint(
                    exit: ExitNumber(next.exit), cpu: Data(next.cpu), devices: Data(), digests: next.digests
                )) { try Self.emit(next.pages, $0) }
                waiting.removeFirst()
            }
            if index < events.count { try writer.append(events[index]) }
        }
        try writer.finish(meta: ending.map { [TraceEnding.key: $0] } ?? [:])
    }

    private static func emit(
        _ pages: [UInt64: [UInt8]], _ body: (UInt64, UnsafeRawPointer) throws(TraceError) -> Void
    ) throws {
        for (number, page) in pages.sorted(by: { $0.key < $1.key }) {
            try page.withUnsafeBytes { if let base = $0.baseAddress { try body(number, base) } }
        }
    }

    /// Leaves out an event; what comes after moves up.
    mutating func drop(_ index: Int) {
        let isExit = events.remove(at: index).identity.kind.isExit
        for i in later.indices where later[i].event > index {
            later[i].event -= 1
            if isExit { later[i].exit -= 1 }
        }
    }

    /// Where exit `number` stands in `events`.
    func index(ofExit number: Int) -> Int? {
        events.firstIndex { $0.identity.kind.isExit && $0.exit.rawValue == UInt64(number) }
    }

    /// The numbers of the exits that `isWanted`.
    func exits(where isWanted: (TraceEvent) -> Bool) -> [Int] {
        events.filter { $0.identity.kind.isExit && isWanted($0) }.map { Int($0.exit.rawValue) }
    }
}

extension TraceEvent {
    func isRead(of port: UInt64) -> Bool { identity.kind == .portRead && identity.address == port }
    func isWrite(to port: UInt64) -> Bool { identity.kind == .portWrite && identity.address == port }
}
