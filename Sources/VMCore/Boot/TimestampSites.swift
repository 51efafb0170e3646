import CZydis

/// The timestamp instructions of a loaded kernel, found by decoding it.
public enum TimestampSites {
    public struct Site: Codable, Equatable, Sendable {
        public var address: GuestPhysicalAddress
        /// Whether it is RDTSCP.
        public var withAux: Bool
    }

    /// Decodes a run of code from its start, once as 32-bit and once as 64-bit code, since kernels hold both; an
    /// instruction counts when either pass comes to it at an instruction boundary.
    public static func find(in code: Range<UInt64>, of memory: GuestMemory) -> [Site] {
        guard let bytes = memory.read(.init(code.lowerBound), count: Int(code.upperBound - code.lowerBound)) else {
            return []
        }
        var found: [UInt64: Bool] = [:]
        for mode in [(ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64), (ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)] {
            var decoder = ZydisDecoder()
            guard ZydisDecoderInit(&decoder, mode.0, mode.1) & 0x8000_0000 == 0 else { continue }
            sweep(bytes, &decoder) { offset, mnemonic in
                found[code.lowerBound + UInt64(offset)] = mnemonic == ZYDIS_MNEMONIC_RDTSCP
            }
        }
        return found.sorted { $0.key < $1.key }.map { Site(address: .init($0.key), withAux: $0.value) }
    }

    private static func sweep(_ bytes: [UInt8], _ decoder: inout ZydisDecoder,
                              _ body: (Int, ZydisMnemonic) -> Void) {
        bytes.withUnsafeBytes { raw in
            var instruction = ZydisDecodedInstruction()
            var offset = 0
            while offset < raw.count {
                let status = ZydisDecoderDecodeInstruction(&decoder, nil, raw.baseAddress! + offset,
                                                           ZyanUSize(raw.count - offset), &instruction)
                guard status & 0x8000_0000 == 0, instruction.length > 0 else {
                    offset += 1
                    continue
                }
                // A prefixed form is longer than what would replace it.
                if instruction.mnemonic == ZYDIS_MNEMONIC_RDTSC && instruction.length == 2
                    || instruction.mnemonic == ZYDIS_MNEMONIC_RDTSCP && instruction.length == 3 {
                    body(offset, instruction.mnemonic)
                }
                offset += Int(instruction.length)
            }
        }
    }

    /// Replaces each site by a port read of the same length: IN EAX, imm8, and for RDTSCP a NOP after it.
    public static func replace(_ sites: [Site], in memory: GuestMemory) {
        for site in sites {
            let port = UInt8(site.withAux ? KVMEngine.rdtscpPort : KVMEngine.rdtscPort)
            memory.write([0xE5, port] + (site.withAux ? [0x90] : []), at: site.address)
        }
    }
}
