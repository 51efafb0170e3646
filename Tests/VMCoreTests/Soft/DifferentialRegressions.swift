/// Instructions on which the soft engine and a processor once disagreed. Each runs with many states.
struct DifferentialRegressions {
    var what: String
    var mode = DifferentialMachine.Mode.long64
    var code: [UInt8]
    /// The register that holds the operand's address.
    var operandIn: Int?

    static let all: [Self] = [
        Self(what: "CR2 of a read-modify-write across pages is the second page", code: [0xF0, 0x48, 0x01, 0x03], operandIn: 3),
        Self(what: "BMI instructions exist", code: [0xC4, 0xC2, 0x40, 0xF2, 0xEE]),
        Self(what: "FLD and FSTP of 80 bits keep denormals and pseudo-denormals", code: [0xDB, 0x2B, 0xDB, 0x7B, 0x10], operandIn: 3),
        Self(what: "an x87 exception waits for the next instruction", code: [0xD8, 0x23, 0x9B], operandIn: 3),
    ]

    func makeCase(seed: UInt64) throws -> DifferentialCase {
        var generator = DifferentialGenerator(DifferentialCatalogue(empty: mode), seed: seed)
        guard let made = generator.make(code: code, operandIn: operandIn) else {
            throw DifferentialMachine.Failure(description: "\(what): no instruction")
        }
        return made
    }
}
