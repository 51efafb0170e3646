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

    init(_ path: String) throws {
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
    }

    func write(to path: String) throws {
        let writer = try TraceWriter(
            path: path, metadata: [TraceDescription.key: description], options: TraceWriterOptions(overwrite: true))
        let checkpoint = NewCheckpoint(exit: .start, cpu: Data(cpu), devices: devices, digests: CheckpointDigests())
        try writer.writeCheckpoint(checkpoint) { (emit: (UInt64, UnsafeRawPointer) throws(TraceError) -> Void) in
            for (number, page) in pages.sorted(by: { $0.key < $1.key }) {
                try page.withUnsafeBytes { if let base = $0.baseAddress { try emit(number, base) } }
            }
        }
        for event in events {
            if let payload = event.payload {
                try payload.withUnsafeBytes { try writer.append(event.identity, bytes: $0) }
            } else if let anchor = event.anchor {
                try writer.append(event.identity, anchor: anchor)
            } else {
                try writer.append(event.identity, value: event.value)
            }
        }
        try writer.finish(meta: ending.map { [TraceEnding.key: $0] } ?? [:])
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
