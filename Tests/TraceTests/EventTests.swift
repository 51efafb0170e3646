import Foundation
import Testing
import VMCore

@testable import Trace

@Suite struct EventTests {
    let folder = Folder()

    @Test(arguments: [
        (UInt64(1), 1000, 10), (2, 5000, 1), (3, 3000, 255), (4, 3000, 256), (5, 3000, 257), (6, 20_000, 5000),
        (7, 65_535, 40), (8, 65_536, 40), (9, 65_537, 40), (10, 140_000, 300),
    ])
    func whatIsWrittenIsRead(seed: UInt64, count: Int, identities: Int) throws {
        var random = Seeded(seed)
        let events = (0..<count).map { _ in Event.random(&random, identities: identities) }
        try record(events, at: folder("a.vmrr"))
        #expect(try readAll(folder("a.vmrr")) == events, "seed \(seed)")
    }

    @Test func manyFlushesChangeNothing() throws {
        var random = Seeded(11)
        let events = (0..<3000).map { _ in Event.random(&random, identities: 30) }
        try record(events, at: folder("a.vmrr"), flushEvery: 7)
        #expect(try readAll(folder("a.vmrr")) == events)
        #expect(try TraceReader(path: folder("a.vmrr")).chunks.count == 1)
    }

    @Test func longRecordingsWithFlushesKeepTheirOrder() throws {
        var random = Seeded(12)
        let events = (0..<150_000).map { _ in Event.random(&random, identities: 9) }
        try record(events, at: folder("a.vmrr"), flushEvery: 5003)
        #expect(try readAll(folder("a.vmrr")) == events)
    }

    @Test func anEmptyTraceIsATrace() throws {
        try record([], at: folder("a.vmrr"))
        #expect(try readAll(folder("a.vmrr")).isEmpty)
        var cursor = try TraceReader(path: folder("a.vmrr")).cursor()
        try cursor.seek(to: ExitNumber(5))
        #expect(try cursor.next() == nil)
    }

    @Test func oneEvent() throws {
        let event = Event.read(0x3F8, 65)
        try record([event], at: folder("a.vmrr"))
        #expect(try readAll(folder("a.vmrr")) == [event])
    }

    @Test func payloadsOfAllSizes() throws {
        var random = Seeded(13)
        let disk = EventIdentity(kind: .memoryWrite, address: 0x10_0000)
        let sizes = [0, 1, 4096, 1 << 20, (1 << 20) + 1, 3, 700_000, 700_000, 3 << 20, 10]
        let events = sizes.map { Event(disk, payload: random.bytes($0)) }
        try record(events, at: folder("a.vmrr"))
        #expect(try readAll(folder("a.vmrr")) == events)
    }

    @Test func tooLongAPayloadIsRefusedAndTheRestGoesOn() throws {
        let writer = try TraceWriter(path: folder("a.vmrr"))
        let disk = EventIdentity(kind: .memoryWrite)
        let bytes = [UInt8](repeating: 1, count: (8 << 20) + 1)
        #expect(throws: TraceError.self) { try bytes.withUnsafeBytes { try writer.append(disk, bytes: $0) } }
        try bytes.dropLast().withUnsafeBytes { try writer.append(disk, bytes: $0) }
        try writer.finish()
        #expect(try readAll(folder("a.vmrr")).map { $0.payload?.count } == [8 << 20])
    }

    @Test func moreAnchorsThanAChunkHolds() throws {
        let identity = EventIdentity(kind: .interruptAtAnchor, address: 0x20)
        let events = (0..<9000).map { n in
            Event(identity, anchor: Anchor(
                rip: n, registers: n * n, memory: 0, instructions: 1, elapsed: Nanoseconds(n ^ 5)))
        }
        try record(events, at: folder("a.vmrr"))
        #expect(try readAll(folder("a.vmrr")) == events)
    }

    @Test func seekFindsWhatScanningFinds() throws {
        var random = Seeded(14)
        let events = (0..<100_000).map { _ in Event.random(&random, identities: 20) }
        let options = TraceWriterOptions(overwrite: true, firstExit: ExitNumber(1000))
        try record(events, at: folder("a.vmrr"), options: options, flushEvery: 9000)
        let reader = try TraceReader(path: folder("a.vmrr"))
        #expect(reader.chunks.count > 3)
        var places: [UInt64: UInt64] = [:]
        var cursor = reader.cursor()
        while let event = try cursor.next() {
            if event.identity.kind.isExit { places[event.exit.rawValue] = event.sequence }
        }
        let last = reader.lastExit.rawValue
        for exit in [1001, last, 1002, last - 1] + (0..<30).map({ _ in 1001 + random.next() % (last - 1000) }) {
            try cursor.seek(to: ExitNumber(exit))
            #expect(cursor.exit.rawValue == exit)
            #expect(try cursor.next()?.sequence ?? reader.events == places[exit]! + 1)
            try cursor.seek(toEvent: exit)
            #expect(cursor.sequence == min(exit, reader.events))
        }
        try cursor.seek(to: .start)
        #expect(try cursor.next()?.sequence == 0)
        try cursor.seek(to: ExitNumber(.max))
        #expect(cursor.exit == reader.lastExit)
        try cursor.seek(toEvent: .max)
        #expect(try cursor.next() == nil)
    }

    @Test func anEventThatCantBeReadIsntWritten() throws {
        let writer = try TraceWriter(path: folder("a.vmrr"))
        try writer.append(EventIdentity(kind: .portRead, size: 3), value: 1)
        #expect(throws: TraceError.self) { try writer.flush() }
        #expect(writer.failure != nil)
        #expect(throws: TraceError.self) { try writer.finish() }
        #expect(try TraceReader(path: folder("a.vmrr")).totals?.failure != nil)
    }

    // MARK: Sizes

    @Test func aPollLoopTakesLessThanAByteAnEvent() throws {
        var random = Seeded(15)
        let events = (0..<60_000).map { n in
            switch n % 3 {
            case 0: Event.read(0x3FD, random.below(16) == 0 ? 0x61 : 0x60)
            case 1: Event.read(0x1F7, random.below(16) == 0 ? random.next() & 255 : 0x50)
            default: Event.read(0x64, random.below(8) == 0 ? 0x1D : 0x1C)
            }
        }
        let size = try record(events, at: folder("a.vmrr"))
        #expect(Double(size) / 60_000 <= 1.0, "\(size) bytes")
    }

    @Test func clocksTakeLessThanThreeAndAHalfBytesAnEvent() throws {
        var random = Seeded(16)
        var now: UInt64 = 5_000_000_000
        var events: [Event] = []
        while events.count < 60_000 {
            now += 17_000 + UInt64(random.below(6001))
            let pit = 0xFFFF - now * 1_193_182 / 1_000_000_000 % 0x1_0000
            events += [
                Event(EventIdentity(kind: .timestamp, size: 8), value: now),
                .read(0x608, now * 3_579_545 / 1_000_000_000 & 0xFF_FFFF, size: 4),
                .read(0x40, pit & 255), .read(0x40, pit >> 8),
                .read(0x71, now / 1_000_000_000 % 60), .read(0x71, now / 60_000_000_000 % 60),
            ]
        }
        let size = try record(events, at: folder("a.vmrr"))
        #expect(Double(size) / Double(events.count) <= 3.5, "\(size) bytes")
    }

    @Test func registerChecksTakeEightBytes() throws {
        var random = Seeded(17)
        let check = EventIdentity(kind: .registerCheck)
        let size = try record((0..<20_000).map { _ in Event(check, value: random.next()) }, at: folder("a.vmrr"))
        #expect(size < 20_000 * 8 + 12_000, "\(size) bytes")
    }
}

@Suite struct ColumnTests {
    private func roundTrip(_ values: [UInt64]) throws -> ColumnHead.Transform {
        var encoder = ColumnEncoder()
        var planes = ByteSink()
        var cuts: [Int] = []
        let head = values.withUnsafeBufferPointer { encoder.encode($0, planes: &planes, cuts: &cuts) }
        var sink = ByteSink()
        head.write(to: &sink)
        var source = ByteSource(sink.bytes)
        let read = try ColumnHead.read(from: &source, count: values.count)
        #expect(read.planeBytes(count: values.count) == planes.bytes.count)
        var decoded = [UInt64](repeating: 1, count: values.count)
        planes.bytes.withUnsafeBytes { planes in
            decoded.withUnsafeMutableBufferPointer { ColumnDecoder.decode(read, planes: planes, into: $0) }
        }
        #expect(decoded == values)
        return head.transform
    }

    @Test func eachColumnGetsItsTransform() throws {
        var random = Seeded(1)
        #expect(try roundTrip([7, 7, 7, 7, 7, 7]) == .constant)
        #expect(try roundTrip([7]) == .constant)
        #expect(try roundTrip((0..<3000).map { _ in random.next() }) == .raw)
        #expect(try roundTrip((0..<3000).map { UInt64($0) * 1000 + random.next() % 16 }) == .delta)
        #expect(try roundTrip((0..<3000).map { UInt64($0 * $0) &* 99_991 }) == .deltaOfDelta)
        #expect(try roundTrip((0..<3000).map { _ in UInt64(bitPattern: Int64(random.below(9)) - 4) }) == .zigzag)
    }

    @Test func extremesSurvive() throws {
        for values: [UInt64] in [[0, .max], [.max, 0, .max], [1 << 63, 0, 1, .max, 1 << 63, 5], [.max, .max, 0]] {
            _ = try roundTrip(values)
        }
    }
}
