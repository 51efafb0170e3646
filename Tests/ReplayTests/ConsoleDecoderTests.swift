import Replay
import Testing
import VMCore

@Suite struct ConsoleDecoderTests {
    private func write(_ port: UInt64, _ value: UInt64, size: UInt8 = 1) -> Exit {
        Exit(EventIdentity(kind: .portWrite, size: size, address: port), value: value)
    }

    @Test func transmitterAndDebugConsolePrint() {
        var decoder = ConsoleDecoder()
        #expect(decoder.decode(write(0x3F8, 0x41)) == [0x41])
        #expect(decoder.decode(write(0xE9, 0x42)) == [0x42])
        #expect(decoder.decode(write(0x80, 0x43)).isEmpty)
        #expect(decoder.decode(Exit(EventIdentity(kind: .portRead, size: 1, address: 0x3F8), value: 0x41)).isEmpty)
    }

    @Test func divisorAndLoopbackDontPrint() {
        var decoder = ConsoleDecoder()
        _ = decoder.decode(write(0x3FB, 0x80))
        #expect(decoder.decode(write(0x3F8, 0x01)).isEmpty)
        _ = decoder.decode(write(0x3FB, 0x03))
        #expect(decoder.decode(write(0x3F8, 0x41)) == [0x41])
        _ = decoder.decode(write(0x3FC, 0x10))
        #expect(decoder.decode(write(0x3F8, 0x41)).isEmpty)
    }

    @Test func stringsPrintAllTheirElements() {
        var bytes: [UInt8] = [0x61, 0x62, 0x63]
        bytes.withUnsafeMutableBytes { data in
            var decoder = ConsoleDecoder()
            let exit = Exit(EventIdentity(kind: .portWrite, size: 1, count: 3, address: 0xE9), data: data)
            #expect(decoder.decode(exit) == [0x61, 0x62, 0x63])
        }
    }
}
